"""What a data set is to the rest of the program: labelled images, by number."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .datasets.packed_texts import PackedTexts
from .encoded_image import EncodedImage
from .errors import BrokenImageError, DataError
from .shared_memory import Slots

REPLACEMENTS = 10
"""Tries to find another image for one that cannot be decoded."""


class Transform(Protocol):
    """From an image to the model's input: its pixels in a worker, the rest of it a batch at a time on the device."""

    def __call__(self, image: Image.Image | EncodedImage) -> Any:
        """What a worker makes of it: (H, W, 3), uint8, or what becomes that on the device."""

    def stacking(self) -> Callable[[Sequence[Any]], Any]:
        """How a worker puts them together, to what `.to(device)` makes (B, H, W, 3), uint8."""
        return Slots().stack

    def on_device(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """(B, H, W, 3), uint8 → (B, 3, H, W), fp32, normalised. The seeds are the images' own."""


class Sample(NamedTuple):
    """What a worker makes of an item."""

    pixels: Any
    """What its transform makes of an image."""
    label: int
    seed: int
    broken: tuple[str, ...] = ()
    """What is wrong with each image that could not be decoded, in whose place this one stands."""


class Images(Protocol):
    """One split of a data set, to inherit from: `images[i]` is (image, index of its class in `classes`).

    The image is an RGB one in memory, or one as it lies in a file: a transform decodes as much of it as it needs.
    """

    classes: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image | EncodedImage, int]: ...

    def shuffled(self, random: np.random.Generator) -> np.ndarray:
        """All indices once: any order is as likely as another, but where only some suit the way that images lie."""
        return random.permutation(len(self))

    @property
    def order(self) -> dict[str, object]:
        """What `shuffled` follows from besides the generator and the number of images, as users name it."""
        return {}


class DataSource(Protocol):
    """A data set: a class in this room whose keyword arguments are the options that conf/data/NAME.yaml may set."""

    def train(self) -> Images: ...

    def val(self, classes: list[str] | None = None) -> Images:
        """The validation split, its labels numbered as in `classes` (the training split's) where those are given."""


class ImageFiles(Images):
    """Images in files, held so that workers share them: their paths, and their labels in an array."""

    def __init__(self, paths: PackedTexts, labels: np.ndarray, classes: list[str]) -> None:
        """labels: (images,), the number of each image's class."""
        self.paths, self.labels, self.classes = paths, labels, classes

    @classmethod
    def of(cls, samples: Sequence[tuple[str, int]], classes: list[str]) -> "ImageFiles":
        """samples: (path, label) of each."""
        labels = np.array([label for _, label in samples], dtype=np.int32)
        return cls(PackedTexts.of(path for path, _ in samples), labels, classes)

    @property
    def samples(self) -> list[tuple[str, int]]:
        """(path, label) of each."""
        return list(zip(self.paths, self.labels.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[EncodedImage, int]:
        path = self.paths[index]
        try:
            with open(path, "rb") as file:  # noqa: PTH123  half the time of Path.read_bytes
                return EncodedImage(file.read(), path), int(self.labels[index])
        except OSError as error:
            raise BrokenImageError(f"{path}: cannot be read ({error.strerror})") from None

    def take(self, indices: np.ndarray) -> "ImageFiles":
        """Those at the indices."""
        return ImageFiles(self.paths.take(indices), self.labels[indices], self.classes)


class TransformedImages(Dataset):
    """Images as pixels, each transformed with randomness of its own.

    Items are asked for by (index, seed). All that is random in a transform follows from the seed, not from the state
    of a worker, so an augmented image is the same in any process, in any number of them, and after a resume.

    replace: an image that cannot be decoded is replaced by another, which follows from the seed, too.
    """

    def __init__(self, images: Images, transform: Transform, *, replace: bool) -> None:
        self.images, self.transform, self.replace = images, transform, replace

    def __getitem__(self, item: tuple[int, int]) -> Sample | DataError:
        """Errors are returned: an exception that crosses from a worker arrives with a traceback for its message."""
        index, seed = item
        broken: list[str] = []
        while True:
            try:
                return self.sample(index, seed)._replace(broken=tuple(broken))
            except BrokenImageError as error:
                broken.append(str(error))
                if not self.replace or len(broken) > REPLACEMENTS:
                    return error
                index = random.Random(f"{seed} {len(broken)}").randrange(len(self.images))
            except DataError as error:
                return error

    def sample(self, index: int, seed: int) -> Sample:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # of the CPU: torch.manual_seed takes 0.2 ms for all devices
        image, label = self.images[index]
        return Sample(self.transform(image), label, seed)


def require_folder(path: Path, what: str) -> Path:
    if not path.is_dir():
        raise DataError(f"{path}: no such folder ({what})")
    return path


def numbers_in(classes: list[str] | None, names: list[str], where: Path) -> list[int]:
    """The number in `classes` of each name; without classes, the names are numbered as they stand.

    Raises:
        DataError: `classes`, the training split's, lack a name.
    """
    if classes is None:
        return list(range(len(names)))
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = [name for name in names if name not in numbers]
    if unknown:
        raise DataError(
            f"{where / unknown[0]}: a class that training lacks ({len(unknown)} such); "
            f"the {len(classes)} known ones: {', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}"
        )
    return [numbers[name] for name in names]
