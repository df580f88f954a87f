"""torchvision's readers of data sets, made to answer as this room does. Nothing is downloaded."""

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from scipy.io.matlab import MatReadError
from torch.utils.data import Dataset

from ..errors import DataError
from ..images import ImageFiles, require_folder

T = TypeVar("T")


def read(reader: Callable[[], T], root: Path, contents: Iterable[str], source: str) -> T:
    """What `reader` makes of a data set in root.

    Args:
        contents: the files and folders that it needs there.
        source: what to tell of them where one is missing, and where they come from.

    Raises:
        DataError: something is missing, or cannot be read.
    """
    require_folder(root, source)
    for name in contents:
        if not (root / name).exists():
            raise DataError(f"{root / name}: no such file or folder ({source})")
    try:
        return reader()
    except (OSError, LookupError, ValueError, TypeError, RuntimeError, MatReadError, zlib.error) as error:
        advice = ". You can use download=True"  # torchvision's; here nothing downloads
        reason = " ".join(str(error).partition(advice)[0].split()) or type(error).__name__
        raise DataError(f"{root}: cannot be read ({reason}); {source}") from None


def list_samples(reader: Dataset) -> list[tuple[str, int]]:
    """(path, label) of every image of a reader of torchvision's that loads images by `loader=str`: as their paths."""
    return [reader[index] for index in range(len(reader))]  # type: ignore[arg-type]


def require_files(images: ImageFiles, source: str) -> ImageFiles:
    refuse_missing([path for path in images.paths if not Path(path).is_file()], len(images), source)
    return images


def refuse_missing(missing: list[str], total: int, source: str) -> None:
    """Refuse a data set of `total` images of which these are missing, by a DataError."""
    if missing:
        raise DataError(f"{missing[0]}: no such file ({len(missing)} of {total} images are missing; {source})")
