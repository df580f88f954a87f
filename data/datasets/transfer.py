"""The small data sets that the paper fine-tunes on: CIFAR, Oxford Flowers and Stanford Cars. torchvision reads them."""

from pathlib import Path

import numpy as np
from torch.utils.data import Dataset
from torchvision import datasets

from ..examples import Example, Examples, members_of
from .image_files import ImageFiles, class_indices
from .torchvision_readers import list_samples, read, require_files


class CIFAR10:
    """CIFAR-10, in root/cifar-10-batches-py/: images of 32 × 32.

    The 50,000 training images are for training, the 10,000 test images for validation.

    Args:
        root: Folder that holds the data set.
    """

    reader = datasets.CIFAR10
    title = "CIFAR-10"

    def __init__(self, *, root: str) -> None:
        self.root = Path(root)

    def train(self) -> "InMemoryImages":
        return self.split(True)

    def val(self, classes: list[str] | None = None) -> "InMemoryImages":
        return self.split(False, classes)

    def split(self, train: bool, classes: list[str] | None = None) -> "InMemoryImages":
        reader, folder = self.reader, self.reader.base_folder
        names = [name for name, _ in [*reader.train_list, *reader.test_list]] + [reader.meta["filename"]]
        source = (
            f"expected {folder}/ in data.root; download {self.title} from https://www.cs.toronto.edu/~kriz/cifar.html"
        )
        cifar = read(lambda: reader(self.root, train=train), self.root, [f"{folder}/{name}" for name in names], source)
        new_labels = class_indices(classes, cifar.classes, self.root / folder)
        return InMemoryImages(cifar, classes or cifar.classes, new_labels)


class CIFAR100(CIFAR10):
    """CIFAR-100, in root/cifar-100-python/: like CIFAR-10, with 100 (fine) classes."""

    reader = datasets.CIFAR100
    title = "CIFAR-100"


class Flowers:
    """Oxford 102 Flower, in root/flowers-102/ with jpg/, imagelabels.mat and setid.mat.

    As is usual in the literature, the official train and val splits, 1,020 images each, are for training. The 6,149
    test images are for validation.

    Args:
        root: Folder that holds the data set.
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
        return self.split("test").relabel(classes, self.root / "flowers-102")

    def split(self, *parts: str) -> ImageFiles:
        def samples() -> list[tuple[str, int]]:
            readers = [datasets.Flowers102(self.root, part, loader=str) for part in parts]
            return [sample for reader in readers for sample in list_samples(reader)]

        contents = [f"flowers-102/{name}" for name in ("jpg", "imagelabels.mat", "setid.mat")]
        files = ImageFiles.from_samples(read(samples, self.root, contents, self.SOURCE), datasets.Flowers102.classes)
        return require_files(files, self.SOURCE)


class Cars:
    """Stanford Cars, in root/stanford_cars/ with devkit/, cars_train/, cars_test/ and cars_test_annos_withlabels.mat.

    The 8,144 training images are for training, the 8,041 test images for validation.

    Args:
        root: Folder that holds the data set.
    """

    def __init__(self, *, root: str) -> None:
        self.root = Path(root)

    def train(self) -> ImageFiles:
        return self.split("train", "devkit/cars_train_annos.mat")

    def val(self, classes: list[str] | None = None) -> ImageFiles:
        images = self.split("test", "cars_test_annos_withlabels.mat")
        return images.relabel(classes, self.root / "stanford_cars")

    def split(self, part: str, annotations: str) -> ImageFiles:
        contents = [f"stanford_cars/{name}" for name in (f"cars_{part}", "devkit/cars_meta.mat", annotations)]
        source = (
            f"expected {contents[0]}/, {contents[1]} and {contents[2]} in data.root; "
            "download Stanford Cars from https://ai.stanford.edu/~jkrause/cars/car_dataset.html or a mirror of it"
        )

        def images() -> ImageFiles:
            reader = datasets.StanfordCars(self.root, part, loader=str)
            return ImageFiles.from_samples(list_samples(reader), reader.classes)

        return require_files(read(images, self.root, contents, source), source)


class InMemoryImages(Examples):
    """Images that a torchvision data set holds in memory."""

    def __init__(self, reader: Dataset, classes: list[str], new_labels: list[int]) -> None:
        """new_labels: the index in `classes` of each label of the reader."""
        self.reader, self.classes, self.new_labels = reader, classes, new_labels

    def __len__(self) -> int:
        return len(self.reader)  # type: ignore[arg-type]

    @property
    def members(self) -> list[np.ndarray]:
        labels = [self.new_labels[label] for label in self.reader.targets]  # type: ignore[attr-defined]
        return members_of(labels, len(self.classes))

    def __getitem__(self, index: int) -> Example:
        image, label = self.reader[index]
        return Example(image, self.new_labels[label], f"image {index}")
