"""Helpers for data sets that torchvision reads: they check its files and convert its errors. Nothing is downloaded."""

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from scipy.io.matlab import MatReadError
from torch.utils.data import Dataset

from xcit.errors import InputError

from .image_files import ImageFiles, require_folder

T = TypeVar("T")


def read(reader: Callable[[], T], root: Path, contents: Iterable[str], source: str) -> T:
    """Call `reader` and return its result. Convert its errors to InputErrors.

    Args:
        reader: A function that reads the data set in root.
        root: The folder of the data set.
        contents: The files and folders in root that `reader` needs.
        source: For the error message: which files are expected, and where to download them.

    Raises:
        InputError: A file is missing or cannot be read.
    """
    require_folder(root, source)
    for name in contents:
        if not (root / name).exists():
            raise InputError(f"{root / name}: no such file or folder ({source})")
    try:
        return reader()
    except (OSError, LookupError, ValueError, TypeError, RuntimeError, MatReadError, zlib.error) as error:
        advice = ". You can use download=True"  # torchvision's advice, which does not apply here
        reason = " ".join(str(error).partition(advice)[0].split()) or type(error).__name__
        raise InputError(f"{root}: cannot be read ({reason}); {source}") from None


def list_samples(reader: Dataset) -> list[tuple[str, int]]:
    """Return the (path, label) of each image of a torchvision data set made with `loader=str`, which returns paths."""
    return [reader[index] for index in range(len(reader))]  # type: ignore[arg-type]


def require_files(images: ImageFiles, source: str) -> ImageFiles:
    """Return the images, or raise an InputError if a file is missing."""
    refuse_missing([path for path in images.paths if not Path(path).is_file()], len(images), source)
    return images


def refuse_missing(missing: list[str], total: int, source: str) -> None:
    """Raise an InputError if some of a data set's `total` images are missing."""
    if missing:
        raise InputError(f"{missing[0]}: no such file ({len(missing)} of {total} images are missing; {source})")
