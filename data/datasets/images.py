"""Images without labels: every image in a folder and its subfolders, for self-supervised training."""

from functools import cached_property
from pathlib import Path

import numpy as np

from xcit.errors import InputError

from ..about import About, Skipped, counted
from ..examples import HELD_OUT, VAL_FRACTION, Example
from .image_files import ImageFiles, require_folder
from .listing import list_tree
from .packed_strings import PackedStrings
from .splits import held_out, require_val_fraction, share_by_name


class UnlabelledFiles(ImageFiles):
    """Image files without targets."""

    target_kind = "none"

    def __getitem__(self, index: int) -> Example:
        return super().__getitem__(index)._replace(target=None)

    def take(self, indices: np.ndarray) -> "UnlabelledFiles":
        return UnlabelledFiles(self.paths.take(indices), self.labels[indices], [], self.about, self.chosen_by)

    @property
    def num_present(self) -> None:  # type: ignore[override]
        return None


class Images:
    """All images below a folder, in any layout. `val_fraction` of them is held out by the names of the files.

    Args:
        root: Folder of your images; its subfolders have no meaning.
        val_fraction: Share of the images that is held out for validation, between 0 and 1.
    """

    def __init__(self, *, root: str, val_fraction: float = 0.1) -> None:
        self.val_fraction = require_val_fraction(val_fraction)
        self.root = require_folder(Path(root), "data.root")

    def train(self) -> UnlabelledFiles:
        return self.everything().take(np.flatnonzero(~self.chosen))

    def val(self, classes: list[str] | None = None) -> UnlabelledFiles:
        return self.everything().take(np.flatnonzero(self.chosen))

    def everything(self, classes: list[str] | None = None) -> UnlabelledFiles:
        """Return all images, for the evaluation of a model that was not trained on this folder."""
        return self.images

    @cached_property
    def chosen(self) -> np.ndarray:
        """Which images are held out: (num_images,), bool."""
        return held_out([path[len(f"{self.root}/") :] for path in self.listed[0]], self.val_fraction)

    @cached_property
    def listed(self) -> tuple[PackedStrings, Skipped]:
        return list_tree(self.root)

    @cached_property
    def images(self) -> UnlabelledFiles:
        paths, skipped = self.listed
        if len(paths) < 2:
            raise InputError(
                f"{self.root}: holds {counted(len(paths), 'image')}, subfolders included; must be at least 2"
            )
        about = About(
            str(self.root),
            choice=f"without labels; {share_by_name(self.chosen, self.val_fraction)}",
            skipped={str(self.root): skipped},
        )
        order = {HELD_OUT: "by file name", VAL_FRACTION: self.val_fraction}
        return UnlabelledFiles(paths, np.zeros(len(paths), dtype=np.int32), [], about, order)
