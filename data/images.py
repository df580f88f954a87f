"""What a data set is to the rest of the program: labelled images, by number."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .encoded import EncodedImage
from .errors import BrokenImageError, DataError

Transform: TypeAlias = Callable[[Image.Image | EncodedImage], Tensor]


class Images(Protocol):
    """One split of a data set: `images[i]` is (image, index of its class in `classes`).

    The image is an RGB one in memory, or one as it lies in a file: a transform decodes as much of it as it needs.
    """

    classes: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image | EncodedImage, int]: ...


class DataSource(Protocol):
    """A data set: a class in this room whose keyword arguments are the options that conf/data/NAME.yaml may set."""

    def train(self) -> Images: ...

    def val(self, classes: list[str] | None = None) -> Images:
        """The validation split, its labels numbered as in `classes` (the training split's) where those are given."""


class ImageFiles:
    """Images in files: `samples` are (path, label)."""

    def __init__(self, samples: list[tuple[str, int]], classes: list[str]) -> None:
        self.samples, self.classes = samples, classes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[EncodedImage, int]:
        path, label = self.samples[index]
        try:
            return EncodedImage(Path(path).read_bytes(), path), label
        except OSError as error:
            raise BrokenImageError(f"{path}: cannot be read ({error.strerror})") from None


class TransformedImages(Dataset):
    """Images as tensors, each transformed with randomness of its own.

    Items are asked for by (index, seed). All that is random in a transform follows from the seed, not from the state
    of a worker, so an augmented image is the same in any process, in any number of them, and after a resume.
    """

    def __init__(self, images: Images, transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int] | DataError:
        index, seed = item
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            image, label = self.images[index]
            return self.transform(image), label
        except DataError as error:
            # Returned, not raised: an exception that crosses from a worker arrives with a traceback for its message.
            return error


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
