"""The user's own images, with one folder per class."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from xcit.errors import InputError

from ..about import About, counted
from ..examples import DIGEST, HELD_OUT, NONE_HELD_OUT, VAL_FRACTION, digest_of
from .image_files import ImageFiles, require_folder
from .listing import list_images, skipped_below
from .splits import find_splits_or_classes, held_out, require_fold, require_val_fraction, share_by_name, split_named
from .stratified import fold_of, held_out_share

EXPECTED = "expected CLASS/IMAGE, or train/CLASS/IMAGE and val/CLASS/IMAGE in it"


class Folder:
    """A folder with one subfolder per class, in one of two layouts.

    - root/train/CLASS/… and root/val/CLASS/…: data/datasets/splits.py lists the names that these folders may have.
      Without val/, test/ is for validation. Without both, `val_fraction` of train/ is held out.
    - root/CLASS/…: `val_fraction` of each class is held out for validation, as `split_by` says.

    Runs of earlier versions saved no `split_by`. They keep their division, because the default here is "name", and
    conf/data/folder.yaml sets "stratified".

    Args:
        root: Folder of your images, as CLASS/IMAGE or as train/CLASS/IMAGE and val/CLASS/IMAGE.
        val_fraction: Share of each class that is held out if there is neither val/ nor test/, between 0 and 1.
        folds: Number of folds of a cross-validation; null: val_fraction is held out.
        fold: Number of the fold that is held out, from 0.
        split_seed: Seed of the division into training and validation images.
        split_by: How images are held out: stratified (the share of each class), or name (by the hash of each path).
    """

    def __init__(
        self,
        *,
        root: str,
        val_fraction: float = 0.2,
        folds: Annotated[int, Field(ge=2)] | None = None,
        fold: Annotated[int, Field(ge=0)] | None = None,
        split_seed: Annotated[int, Field(ge=0)] = 0,
        split_by: Literal["stratified", "name"] = "name",
    ) -> None:
        self.val_fraction = require_val_fraction(val_fraction)
        self.root = require_folder(Path(root), "data.root")
        require_fold(folds, fold)
        self.folds, self.fold, self.split_seed, self.split_by = folds, fold, split_seed, split_by
        self.splits, self.class_like_split = find_splits_or_classes(self.root)
        if folds and (given := self.splits.val or self.splits.test):
            raise InputError(f"data.folds={folds}: {given} holds the validation images; leave data.folds out")

    def train(self) -> ImageFiles:
        splits = self.splits
        if not splits.found:
            return self.divided[0]
        if not splits.train:
            raise InputError(f"{self.root}: holds {splits.found[0].name} but no training split; {EXPECTED}")
        if splits.val or splits.test:
            return self.of_split(list_class_folders(splits.train))
        return self.of_split(self.divided[0])

    def val(self, classes: list[str] | None = None) -> ImageFiles:
        splits = self.splits
        if not splits.found:
            return self.held_out(classes)
        if splits.val:
            return self.of_split(list_class_folders(splits.val, classes))
        if splits.test:
            return self.of_split(list_class_folders(splits.test, classes), "there is no validation folder")
        return self.of_split(self.held_out(classes))

    def everything(self, classes: list[str] | None = None) -> ImageFiles:
        """Return all images of a folder without splits, otherwise the validation split.

        It is for the evaluation of a model that was not trained on this folder. With folds, it is the held-out fold.
        """
        if self.splits.found or self.folds:
            return self.val(classes)
        choice = "all, because the folder has no splits" + self.about_classes()
        return list_class_folders(self.root, classes).described(choice, order={HELD_OUT: NONE_HELD_OUT})

    @cached_property
    def divided(self) -> tuple[ImageFiles, ImageFiles]:
        """The training images and the held-out images of a folder without splits, or of the training split."""
        folder = self.splits.train or self.root
        images = list_class_folders(folder)
        names = [path[len(f"{folder}/") :] for path in images.paths]
        members = images.members or []
        order: dict[str, object]
        if self.folds:
            chosen = fold_of(names, members, self.folds, self.split_seed) == self.fold
            choice = f"fold {self.fold} of {self.folds} is held out"
            key = f"in fold {self.fold} of {self.folds} by data.split_seed={self.split_seed}"
            order = {HELD_OUT: key, DIGEST: digest_of(names[image] for image in np.flatnonzero(chosen))}
        elif self.split_by == "stratified":
            chosen = held_out_share(names, members, self.val_fraction, self.split_seed)
            choice = f"held out: {100 * self.val_fraction:g} % of each class"
            key = f"by data.split_seed={self.split_seed} ({100 * self.val_fraction:g} %)"
            order = {HELD_OUT: key, DIGEST: digest_of(names[image] for image in np.flatnonzero(chosen))}
        else:
            chosen = np.zeros(len(images), dtype=bool)
            for images_of in members:
                within = [names[image].partition("/")[2] for image in images_of]  # the class folder
                chosen[images_of] = held_out(within, self.val_fraction, self.split_seed)
            choice = share_by_name(chosen, self.val_fraction)
            seed = f" and data.split_seed={self.split_seed}" if self.split_seed else ""
            order = {HELD_OUT: f"by file name{seed}", VAL_FRACTION: self.val_fraction}
        lacking = len(images.classes) - len(np.unique(images.labels[chosen]))
        if lacking:
            choice += f"; {counted(lacking, 'class has', 'classes have')} " + (
                "no image in it" if self.folds else "a single image, for training"
            )
        choice += self.about_classes()
        images = images.described(choice, order=order)
        return images.take(np.flatnonzero(~chosen)), images.take(np.flatnonzero(chosen))

    def held_out(self, classes: list[str] | None) -> ImageFiles:
        """Return the held-out images.

        Raises:
            InputError: Each class has only one image.
        """
        folder, images = self.splits.train or self.root, self.divided[1]
        if not len(images):
            raise InputError(f"{folder}: each class has only one image, so none can be held out for validation")
        return images.relabel(classes, folder)

    def about_classes(self) -> str:
        """Say if a class folder could be a split by its name."""
        name = self.class_like_split
        return f"; {name} is a class, because it stands beside others and holds no class folders" if name else ""

    def of_split(self, images: ImageFiles, choice: str = "") -> ImageFiles:
        """Return the images of a split's folder, and with them what the root holds besides."""
        skipped, unused = self.splits.skipped, self.splits.test if self.splits.val else None
        if unused:
            skipped = replace(skipped, folders=[*skipped.folders, unused.name])
        return images.described(choice, skipped={str(self.root): skipped})


def list_class_folders(folder: Path, classes: list[str] | None = None) -> ImageFiles:
    """List the images in folder/CLASS/ and its subfolders, sorted by path.

    Args:
        folder: The folder with one subfolder per class.
        classes: Labels are indices into this list. The default is the sorted names of the subfolders.

    Raises:
        InputError: There are no images, a class has none, a class folder holds splits, or a subfolder is not in
            `classes`.
    """
    require_folder(folder, "expected a folder per class in it")
    found = list_images(folder)
    if not found.classes:
        raise InputError(
            f"{folder}: holds no class folders, but {counted(found.skipped.loose, 'image')}; {EXPECTED}"
            if found.skipped.loose
            else f"{folder}: holds no class folders; {EXPECTED}"
        )
    refuse_splits(folder, found.folders)
    counts = np.bincount(found.labels, minlength=len(found.classes))
    if not counts.all():
        empty = found.classes[int(np.flatnonzero(counts == 0)[0])]
        skipped = skipped_below(folder / empty)
        besides = f" (skipped in it: {skipped})" if str(skipped) else ""
        raise InputError(f"{folder / empty}: holds no images{besides}; each folder here must be a class with images")
    about = About(str(folder), skipped={str(folder): found.skipped})
    return ImageFiles(found.paths, found.labels, found.classes, about).relabel(classes, folder)


def refuse_splits(folder: Path, subfolders: Iterable[str]) -> None:
    """Raise an InputError if a class folder holds several splits. subfolders: relative to `folder`."""
    splits_of: dict[str, set[str]] = defaultdict(set)
    for name in subfolders:
        top, _, below = name.partition("/")
        if below and "/" not in below and (split := split_named(below)):
            splits_of[top].add(split)
            if len(splits_of[top]) > 1:
                raise InputError(
                    f"{folder / top}: holds folders of splits ({', '.join(sorted(splits_of[top]))}) and is no class; "
                    f"give data.root={folder / top}, or put the classes into the splits, as {folder}/train/{top}/"
                )
