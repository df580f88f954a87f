"""Finds the folders of the training, validation and test split by their names, and holds images out by their names."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xcit.errors import InputError

from ..about import Skipped, listed
from .listing import look_into

SPELLINGS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
"""Split → the names of its folder, in upper or lower case. A word of WORDS may stand before or after it, and a number
at the end: Train, VALIDATION, train_images, TestSet and val2017 are recognized, too."""
WORDS = "data|dataset|files|folder|images?|img|imgs|photos|pictures|set|split"


class Splits(NamedTuple):
    """The folders of the splits in a root; None for a split without a folder."""

    train: Path | None
    val: Path | None
    test: Path | None
    skipped: Skipped
    """What else is in the root."""

    @property
    def found(self) -> list[Path]:
        return [folder for folder in (self.train, self.val, self.test) if folder]


def split_named(name: str) -> str | None:
    """Return the split ("train", "val" or "test") whose folder may have this name, or None."""
    for split, spellings in SPELLINGS.items():
        pattern = rf"(?:(?:{WORDS})[ _.-]?)?(?:{'|'.join(spellings)})(?:[ _.-]?(?:{WORDS}))?[ _.-]?\d*"
        if re.fullmatch(pattern, name.lower()):
            return split
    return None


def find_splits(root: Path) -> Splits:
    """Find the folders of the splits in root.

    Raises:
        InputError: Two folders have names of the same split, or the root cannot be read.
    """
    found: dict[str, Path] = {}
    folders, images, skipped = look_into(root)
    skipped.loose = len(images)
    for name in folders:
        split = split_named(name)
        if split is None:
            skipped.folders.append(name)
        elif split in found:
            raise InputError(
                f"{root}: holds two folders for the split {split}, {found[split].name} and {name}; keep one of them"
            )
        else:
            found[split] = root / name
    return Splits(found.get("train"), found.get("val"), found.get("test"), skipped)


def find_splits_or_classes(root: Path) -> tuple[Splits, str | None]:
    """Find the splits in a root that may hold class folders instead.

    Returns:
        The splits, none of them for class folders; and the name of a class folder that could be a split by its name.

    Raises:
        InputError: A folder may be a split or a class, or as `find_splits`.
    """
    splits = find_splits(root)
    beside = [name for name in splits.skipped.folders if holds_images(root / name)]
    # Two different splits are no coincidence. A single folder "train" beside others may be the class of trains.
    if len(splits.found) != 1 or not beside:
        return splits, None
    only = splits.found[0]
    subfolders, _, _ = look_into(only)
    if subfolders:
        raise InputError(
            f"{root}: {only.name} may be a split or a class, because it stands beside {listed(beside)}; "
            "rename it if it is a class, or move the others elsewhere if it is a split"
        )
    return Splits(None, None, None, Skipped()), only.name


def holds_images(folder: Path) -> bool:
    """Return whether there is an image in the folder or in its subfolders."""
    subfolders, images, _ = look_into(folder)
    return bool(images) or any(holds_images(folder / name) for name in subfolders)


def held_out(names: Sequence[str], fraction: float, seed: int = 0) -> np.ndarray:
    """Return which images of one class are held out for validation: (num_images,), bool.

    An image is held out if the hash of its name, a number from 0 to 1, is below the fraction. So it does not matter
    which other images there are: images that are added later move no image from one split to the other. There are two
    exceptions, because each class needs a training image, and a validation image if it has two images:

    - If no hash is below the fraction, the image with the lowest hash is held out.
    - If all hashes are below the fraction, the image with the highest hash is for training.

    Later images can move an image only in classes where an exception applied. A class with n images is such a class
    with a probability of (1 - fraction)ⁿ, or fractionⁿ. In the first case an image moves from validation to training,
    which does no harm. In the second case one image moves from training to validation.

    Args:
        names: The path of each image relative to its class folder.
        fraction: The share that is held out.
        seed: Another seed chooses other images.
    """
    hashes = np.array([hash_of(name, seed) for name in names])
    chosen = hashes < fraction
    if len(names) > 1 and not chosen.any():
        chosen[hashes.argmin()] = True
    if chosen.all():
        chosen[hashes.argmax()] = False
    return chosen


def share_by_name(chosen: np.ndarray, fraction: float) -> str:
    """Say which share was held out by the names of the files, and which was wanted if that is another one."""
    wanted, found = f"{100 * fraction:g} %", f"{100 * chosen.mean():.3g} %"
    return f"held out by file name: {found}" + (f" for data.val_fraction={fraction:g}" if found != wanted else "")


def hash_of(name: str, seed: int = 0) -> float:
    """Return a number in [0, 1) that depends on the name, in any of the Unicode forms that macOS may give it.

    Another seed gives another number.
    """
    normalized = unicodedata.normalize("NFC", f"{seed}/{name}" if seed else name).encode(errors="surrogateescape")
    return int.from_bytes(hashlib.sha256(normalized).digest()[:6]) / 2**48


def require_val_fraction(share: float) -> float:
    """The share of the images that is held out. Raise an InputError if it leaves no training or validation images."""
    if not 0 < share < 1:
        raise InputError(
            f"data.val_fraction={share}: must be greater than 0 and less than 1, because a run needs training and "
            "validation images; data that come with both are divided as they are"
        )
    return share


def require_fold(folds: int | None, fold: int | None) -> None:
    """Raise an InputError unless `fold` is one of `folds`, or both are None."""
    if folds is None and fold is not None:
        raise InputError(f"data.fold={fold}: needs data.folds, the number of folds")
    if folds is not None and (fold is None or fold >= folds):
        given = "data.fold: must be given" if fold is None else f"data.fold={fold}: must be less"
        raise InputError(f"{given} with data.folds={folds}; it is a number from 0 to {folds - 1}")
