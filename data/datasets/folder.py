"""One's own images: a folder for each class."""

import random
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..errors import DataError
from ..images import ImageFiles, numbers_in, require_folder
from .listing import list_images


class Folder:
    """A tree with a folder per class.

    Either root/train/CLASS/… and root/val/CLASS/…, or root/CLASS/… alone: then `val_fraction` of each class is set
    aside for validation, always the same images.
    """

    def __init__(self, *, root: str, val_fraction: float = 0.2) -> None:
        if not 0 < val_fraction < 1:
            raise DataError(f"data.val_fraction={val_fraction}: must be between 0 and 1")
        self.root, self.val_fraction = require_folder(Path(root), "data.root"), val_fraction

    def train(self) -> ImageFiles:
        return self.split(0) if self.is_undivided() else list_classes(self.root / "train")

    def val(self, classes: list[str] | None = None) -> ImageFiles:
        if self.is_undivided():
            return relabel(self.split(1), classes, self.root)
        return list_classes(self.root / "val", classes)

    def is_undivided(self) -> bool:
        return not (self.root / "train").is_dir() and not (self.root / "val").is_dir()

    def split(self, part: int) -> ImageFiles:
        whole = list_classes(self.root)
        parts: tuple[list[int], list[int]] = ([], [])
        for label in range(len(whole.classes)):
            members = np.flatnonzero(whole.labels == label).tolist()
            random.Random(label).shuffle(members)
            held_out = round(len(members) * self.val_fraction)
            parts[0].extend(members[held_out:])
            parts[1].extend(members[:held_out])
        if not parts[part]:
            raise DataError(
                f"{self.root}: {len(whole)} images are too few to set aside {self.val_fraction} of each class"
            )
        return whole.take(np.array(parts[part]))


def list_classes(folder: Path, classes: list[str] | None = None) -> ImageFiles:
    """The images below folder/CLASS/, sorted; labels number `classes`, by default the sorted names of the folders."""
    require_folder(folder, "expected a folder per class in it")
    found = list_images(folder)
    if not found.classes:
        raise DataError(f"{folder}: holds no class folders")
    if not len(found.labels):
        raise DataError(f"{folder}: holds no images ({', '.join(IMG_EXTENSIONS)})")
    counts = np.bincount(found.labels, minlength=len(found.classes))
    if not counts.all():
        empty = found.classes[int(np.flatnonzero(counts == 0)[0])]
        raise DataError(f"{folder / empty}: holds no images ({', '.join(IMG_EXTENSIONS)})")
    return relabel(ImageFiles(found.paths, found.labels, found.classes), classes, folder)


def relabel(images: ImageFiles, classes: list[str] | None, folder: Path) -> ImageFiles:
    """The same images, numbered as in `classes`."""
    numbers = np.array(numbers_in(classes, images.classes, folder), dtype=np.int32)
    return ImageFiles(images.paths, numbers[images.labels], classes or images.classes)
