"""The small data sets that the paper fine-tunes on, as torchvision reads them."""

from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset
from torchvision import datasets

from ..images import ImageFiles, Images, numbers_in
from .folder import relabel
from .torchvision_readers import list_samples, read, require_files


class CIFAR10:
    """root/cifar-10-batches-py/: 50,000 images of 32 × 32 for training, the 10,000 of the test for validation."""

    reader = datasets.CIFAR10
    title = "CIFAR-10"

    def __init__(self, *, root: str) -> None:
        self.root = Path(root)

    def train(self) -> Images:
        return self.split(True)

    def val(self, classes: list[str] | None = None) -> Images:
        return self.split(False, classes)

    def split(self, train: bool, classes: list[str] | None = None) -> Images:
        reader, folder = self.reader, self.reader.base_folder
        names = [name for name, _ in [*reader.train_list, *reader.test_list]] + [reader.meta["filename"]]
        source = (
            f"expected {folder}/ in data.root; download {self.title} from https://www.cs.toronto.edu/~kriz/cifar.html"
        )
        held = read(lambda: reader(self.root, train=train), self.root, [f"{folder}/{name}" for name in names], source)
        return HeldImages(held, classes or held.classes, numbers_in(classes, held.classes, self.root / folder))


class CIFAR100(CIFAR10):
    """root/cifar-100-python/: as CIFAR-10, with 100 (fine) classes."""

    reader = datasets.CIFAR100
    title = "CIFAR-100"


class Flowers:
    """Oxford 102 Flower: root/flowers-102/ with jpg/, imagelabels.mat and setid.mat.

    As the literature has it, training takes the train and the val split, 1,020 images each; the 6,149 of the test are
    for validation.
    """

    SOURCE = (
        "expected flowers-102/jpg/, flowers-102/imagelabels.mat and flowers-102/setid.mat in data.root; "
        "download Oxford 102 Flower from https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
    )

    def __init__(self, *, root: str) -> None:
        self.root = Path(root)

    def train(self) -> ImageFiles:
        return self.split("train", "val")

    def val(self, classes: list[str] | None = None) -> ImageFiles:
        return relabel(self.split("test"), classes, self.root / "flowers-102")

    def split(self, *parts: str) -> ImageFiles:
        def samples() -> list[tuple[str, int]]:
            readers = [datasets.Flowers102(self.root, part, loader=str) for part in parts]
            return [sample for reader in readers for sample in list_samples(reader)]

        contents = [f"flowers-102/{name}" for name in ("jpg", "imagelabels.mat", "setid.mat")]
        files = ImageFiles.of(read(samples, self.root, contents, self.SOURCE), datasets.Flowers102.classes)
        return require_files(files, self.SOURCE)


class Cars:
    """Stanford Cars: root/stanford_cars/ with devkit/, cars_train/, cars_test/ and cars_test_annos_withlabels.mat.

    8,144 images for training, the 8,041 of the test for validation.
    """

    def __init__(self, *, root: str) -> None:
        self.root = Path(root)

    def train(self) -> ImageFiles:
        return self.split("train", "devkit/cars_train_annos.mat")

    def val(self, classes: list[str] | None = None) -> ImageFiles:
        images = self.split("test", "cars_test_annos_withlabels.mat")
        return relabel(images, classes, self.root / "stanford_cars")

    def split(self, part: str, annotations: str) -> ImageFiles:
        contents = [f"stanford_cars/{name}" for name in (f"cars_{part}", "devkit/cars_meta.mat", annotations)]
        source = (
            f"expected {contents[0]}/, {contents[1]} and {contents[2]} in data.root; "
            "download Stanford Cars from https://ai.stanford.edu/~jkrause/cars/car_dataset.html or a mirror of it"
        )

        def images() -> ImageFiles:
            reader = datasets.StanfordCars(self.root, part, loader=str)
            return ImageFiles.of(list_samples(reader), reader.classes)

        return require_files(read(images, self.root, contents, source), source)


class HeldImages(Images):
    """Images that a reader of torchvision's holds in memory; its label l is `numbers[l]` here."""

    def __init__(self, reader: Dataset, classes: list[str], numbers: list[int]) -> None:
        self.reader, self.classes, self.numbers = reader, classes, numbers

    def __len__(self) -> int:
        return len(self.reader)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.reader[index]
        return image, self.numbers[label]
