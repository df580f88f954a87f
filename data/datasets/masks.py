"""The user's own images with index masks, for semantic segmentation."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from xcit.encoded_image import BrokenImageError, EncodedImage
from xcit.errors import InputError

from ..about import About, counted
from ..examples import HELD_OUT, NONE_HELD_OUT, VAL_FRACTION, Example, Examples
from ..index_mask import VALUES, IndexMask, Labels
from .image_files import require_folder
from .listing import list_tree
from .packed_strings import PackedStrings
from .splits import find_splits, held_out, require_val_fraction, share_by_name

Value = Annotated[int, Field(ge=0, lt=VALUES)]


class MaskedFiles(Examples):
    """Image files, each with the file of its mask. Both are read when an example is requested."""

    target_kind = "mask"

    def __init__(
        self,
        images: PackedStrings,
        masks: PackedStrings,
        classes: list[str],
        labels: Labels,
        about: About = About(),  # noqa: B008  (it cannot be changed)
        order: Mapping[str, object] | None = None,
    ) -> None:
        """
        Args:
            images: The path of each image.
            masks: The path of each image's mask.
            classes: The names of the classes.
            labels: What the values of the masks stand for.
            about: Where the images are from.
            order: What `Examples.order` returns.
        """
        self.images, self.masks, self.classes, self.labels, self.about = images, masks, classes, labels, about
        self.chosen_by = dict(order or {})

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        image = read_file(self.images[index])
        return Example(image, IndexMask(read_file(self.masks[index]), self.labels, image), image.origin)

    @property
    def order(self) -> dict[str, object]:
        return self.chosen_by

    def take(self, indices: np.ndarray, about: About, order: Mapping[str, object]) -> "MaskedFiles":
        """Return the images at these indices, with what is said about them."""
        return MaskedFiles(self.images.take(indices), self.masks.take(indices), self.classes, self.labels, about, order)


class Masks:
    """Images and index masks: root/images/… and root/masks/…, with the same paths within both, in one of two layouts.

    - images/train/… and images/val/…, and masks/train/… and masks/val/…: data/datasets/splits.py lists the names that
      these folders may have. Without val/, test/ is for validation. Without both, `val_fraction` of train/ is held out.
    - images/… and masks/… without splits: `val_fraction` of the images is held out by the names of the files.

    A mask is a PNG file, with a palette or with gray values of up to 16 bits. Its values are the indices of classes.

    Args:
        root: Folder that holds images/ and masks/.
        classes: Number of classes, or a text file below data.root with the name of a class in each line.
        images: Folder of the images within root.
        masks: Folder of the masks within root: for images/a/1.jpg it holds a/1.png.
        ignore: Values in the masks that belong to no class.
        labels: Value in the masks → index of its class; null: the values are the indices.
        val_fraction: Share of the images that is held out if there is neither val/ nor test/, between 0 and 1.
    """

    def __init__(
        self,
        *,
        root: str,
        classes: Annotated[int, Field(ge=1, le=2**15 - 1)] | str,
        images: str = "images",
        masks: str = "masks",
        ignore: list[Value] = [255],  # noqa: B006  (it is not changed)
        labels: dict[Value, Annotated[int, Field(ge=0)]] | None = None,
        val_fraction: float = 0.1,
    ) -> None:
        self.val_fraction = require_val_fraction(val_fraction)
        self.root = require_folder(Path(root), "data.root")
        self.images = require_folder(self.root / images, "data.images: the images within data.root")
        self.masks = require_folder(self.root / masks, "data.masks: the masks within data.root")
        self.classes = names_of(classes, self.root)
        self.labels = labels_of(labels, ignore, len(self.classes))
        self.splits = find_splits(self.images)

    def train(self) -> MaskedFiles:
        splits = self.splits
        if splits.found and not splits.train:
            raise InputError(f"{self.images}: holds {splits.found[0].name} but no training split")
        if splits.val or splits.test:
            return self.of_split(splits.train)
        return self.part(~self.chosen)

    def val(self, classes: list[str] | None = None) -> MaskedFiles:
        require_same_classes("masks", self.classes, classes)
        if self.splits.val or self.splits.test:
            choice = "" if self.splits.val else "there is no validation folder"
            return self.of_split(self.splits.val or self.splits.test, choice)
        return self.part(self.chosen)

    def everything(self, classes: list[str] | None = None) -> MaskedFiles:
        """Return all images of a folder without splits, otherwise the validation split.

        It is for the evaluation of a model that was not trained on this folder.
        """
        if self.splits.found:
            return self.val(classes)
        require_same_classes("masks", self.classes, classes)
        about = replace(self.divided.about, choice="all, because the folder has no splits")
        return self.divided.take(np.arange(len(self.divided)), about, {HELD_OUT: NONE_HELD_OUT})

    def of_split(self, folder: Path | None, choice: str = "") -> MaskedFiles:
        """Return the images of a split's folder."""
        assert folder is not None
        found = find_masks(folder, self.masks / folder.name, self.classes, self.labels)
        skipped = {**found.about.skipped, str(self.images): self.splits.skipped}
        return found.take(np.arange(len(found)), About(str(folder), choice, skipped), {})

    def part(self, chosen: np.ndarray) -> MaskedFiles:
        """Return some of the images of a folder without splits, or of the training split."""
        about = replace(self.divided.about, choice=share_by_name(self.chosen, self.val_fraction))
        order = {HELD_OUT: "by file name", VAL_FRACTION: self.val_fraction}
        return self.divided.take(np.flatnonzero(chosen), about, order)

    @cached_property
    def divided(self) -> MaskedFiles:
        """The images that are divided into training and validation images."""
        folder = self.splits.train or self.images
        found = find_masks(folder, self.masks / folder.relative_to(self.images), self.classes, self.labels)
        if len(found) < 2:
            raise InputError(f"{folder}: holds 1 image; must be at least 2, since some are held out for validation")
        return found

    @cached_property
    def chosen(self) -> np.ndarray:
        """Which of these images are held out: (num_images,), bool."""
        prefix = len(self.divided.images.prefix)
        return held_out([path[prefix:] for path in self.divided.images], self.val_fraction)


def find_masks(images: Path, masks: Path, classes: list[str], labels: Labels) -> MaskedFiles:
    """Pair the images below a folder with the masks below another one, by their paths without extension.

    Raises:
        InputError: There are no images, an image has no mask, or a mask has no image.
    """
    found, skipped = list_tree(require_folder(images, "images"))
    if not len(found):
        raise InputError(f"{images}: holds no images, subfolders included")
    found_masks, skipped_masks = list_tree(require_folder(masks, f"the masks of {images}"))
    # Both are keyed by their paths below the two folders, without extension.
    keys = [stem(path[len(found.prefix) :]) for path in found]
    mask_of = {stem(path[len(found_masks.prefix) :]): path for path in found_masks}
    lacking = [found[number] for number, key in enumerate(keys) if key not in mask_of]
    if lacking:
        raise InputError(f"{lacking[0]}: has no mask in {masks}{others(lacking, 'such image')}")
    known = set(keys)
    alone = [path for key, path in mask_of.items() if key not in known]
    if alone:
        raise InputError(f"{alone[0]}: is the mask of no image in {images}{others(alone, 'such mask')}")
    inexact = [path for path in mask_of.values() if not path.lower().endswith(".png")]
    if inexact:
        raise InputError(f"{inexact[0]}: must be a PNG file, as every mask{others(inexact, 'such mask')}")
    packed = PackedStrings.pack((mask_of[key][len(found_masks.prefix) :] for key in keys), found_masks.prefix)
    about = About(str(images), skipped={str(images): skipped, str(masks): skipped_masks})
    return MaskedFiles(found, packed, classes, labels, about)


def stem(path: str) -> str:
    """Return a path without its extension."""
    return path.rpartition(".")[0]


def others(paths: Sequence[str], what: str) -> str:
    """As "; there are 3 such masks"; empty for one path."""
    return f"; there are {counted(len(paths), what)}" if len(paths) > 1 else ""


def read_file(path: str) -> EncodedImage:
    """Read a file.

    Raises:
        BrokenImageError: It cannot be read.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123  takes half the time of Path.read_bytes
            return EncodedImage(file.read(), path)
    except OSError as error:
        raise BrokenImageError(f"{path}: cannot be read ({error.strerror})") from None


def names_of(classes: int | str, root: Path) -> list[str]:
    """Return the names of the classes, from a text file or as numbers.

    The file is below root. For older commands, it may also be below the working directory.

    Raises:
        InputError: The file is not as expected.
    """
    if isinstance(classes, int):
        return [str(number) for number in range(classes)]
    below = root / classes  # or classes itself if it is an absolute path
    try:
        lines = (below if below.exists() else Path(classes)).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        expected = "must be the number of classes or a text file below data.root"
        raise InputError(f"data.classes={classes}: cannot be read ({reason}); {expected}") from None
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if not names or not all(names):
        where = f"line {names.index('') + 1} is" if names else "it is"
        raise InputError(f"data.classes={classes}: {where} empty; must hold the name of a class in each line")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"data.classes={classes}: holds the name {twice} twice; each class needs a name of its own")
    return names


def labels_of(labels: Mapping[int, int] | None, ignore: Sequence[int], num_classes: int) -> Labels:
    """Return what the values of the masks stand for.

    Raises:
        InputError: A class does not exist, or a value is both ignored and the label of a class.
    """
    mapping = {value: value for value in range(num_classes)} if labels is None else dict(labels)
    wrong = [(value, index) for value, index in mapping.items() if index >= num_classes]
    if wrong:
        raise InputError(
            f"data.labels: {wrong[0][0]} stands for class {wrong[0][1]}; the classes are 0 to {num_classes - 1}"
        )
    both = [value for value in ignore if value in mapping]
    if both:
        raise InputError(
            f"data.ignore=[{','.join(map(str, ignore))}]: {both[0]} is also the label of class {mapping[both[0]]}"
        )
    return Labels(mapping, ignore)


def require_same_classes(data: str, own: Sequence[str], classes: Sequence[str] | None) -> None:
    """Raise an InputError if the classes of a model are not those of the data set."""
    if classes is None or list(classes) == list(own):
        return
    number = next((n for n, names in enumerate(zip(own, classes, strict=False)) if names[0] != names[1]), None)
    if number is None:
        raise InputError(f"data={data}: has {counted(len(own), 'class', 'classes')}; the model has {len(classes)}")
    raise InputError(f"data={data}: class {number} is {own[number]}; the model's is {classes[number]}")
