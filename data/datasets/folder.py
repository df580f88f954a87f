"""The user's own images, with one folder per class."""

import random
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from xcit.errors import InputError

from .image_files import ImageFiles, require_folder
from .listing import list_images


class Folder:
    """A folder with one subfolder per class, in one of two layouts.

    - root/train/CLASS/… and root/val/CLASS/…
    - root/CLASS/…: `val_fraction` of each class is used for validation. The choice of images is the same in each run.

    Args:
        root: The folder.
        val_fraction: The share of each class that is used for validation in the second layout.
    """

    def __init__(self, *, root: str, val_fraction: float = 0.2) -> None:
        if not 0 < val_fraction < 1:
            raise InputError(f"data.val_fraction={val_fraction}: must be between 0 and 1")
        self.root, self.val_fraction = require_folder(Path(root), "data.root"), val_fraction

    def train(self) -> ImageFiles:
        return self.split(0) if self.has_no_splits() else list_class_folders(self.root / "train")

    def val(self, classes: list[str] | None = None) -> ImageFiles:
        if self.has_no_splits():
            return self.split(1).relabel(classes, self.root)
        return list_class_folders(self.root / "val", classes)

    def has_no_splits(self) -> bool:
        """Return whether root has neither a train/ nor a val/ folder."""
        return not (self.root / "train").is_dir() and not (self.root / "val").is_dir()

    def split(self, part: int) -> ImageFiles:
        """Return the training split (part 0) or the validation split (part 1) of a folder without train/ and val/."""
        images = list_class_folders(self.root)
        parts: tuple[list[int], list[int]] = ([], [])
        for label in range(len(images.classes)):
            members = np.flatnonzero(images.labels == label).tolist()
            random.Random(label).shuffle(members)  # a fixed seed: the same split in each run
            held_out = round(len(members) * self.val_fraction)
            parts[0].extend(members[held_out:])
            parts[1].extend(members[:held_out])
        if not parts[part]:
            raise InputError(
                f"{self.root}: {len(images)} images are too few to set aside {self.val_fraction} of each class"
            )
        return images.take(np.array(parts[part]))


def list_class_folders(folder: Path, classes: list[str] | None = None) -> ImageFiles:
    """List the images in folder/CLASS/ and its subfolders, sorted by path.

    Args:
        folder: The folder with one subfolder per class.
        classes: Labels are indices into this list. The default is the sorted names of the subfolders.

    Raises:
        InputError: There are no images, a class has none, or a subfolder is not in `classes`.
    """
    require_folder(folder, "expected a folder per class in it")
    found = list_images(folder)
    if not found.classes:
        raise InputError(f"{folder}: holds no class folders")
    if not len(found.labels):
        raise InputError(f"{folder}: holds no images ({', '.join(IMG_EXTENSIONS)})")
    counts = np.bincount(found.labels, minlength=len(found.classes))
    if not counts.all():
        empty = found.classes[int(np.flatnonzero(counts == 0)[0])]
        raise InputError(f"{folder / empty}: holds no images ({', '.join(IMG_EXTENSIONS)})")
    return ImageFiles(found.paths, found.labels, found.classes).relabel(classes, folder)
