"""A split whose images are files. Workers share the memory of the paths and labels, which are held in arrays."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from xcit.encoded_image import BrokenImageError, EncodedImage
from xcit.errors import InputError

from ..about import About, Skipped
from ..examples import Example, Examples, members_of
from .packed_strings import PackedStrings


class ImageFiles(Examples):
    """Examples with one class each. An image is read from its file when it is requested."""

    def __init__(
        self,
        paths: PackedStrings,
        labels: np.ndarray,
        classes: list[str],
        about: About = About(),  # noqa: B008  (it cannot be changed)
        order: Mapping[str, object] | None = None,
    ) -> None:
        """
        Args:
            paths: The path of each image.
            labels: (num_images,), indices into classes.
            classes: The names of the classes.
            about: Where the images are from.
            order: What `Examples.order` returns.
        """
        self.paths, self.labels, self.classes, self.about = paths, labels, classes, about
        self.chosen_by = dict(order or {})

    @classmethod
    def from_samples(
        cls,
        samples: Sequence[tuple[str, int]],
        classes: list[str],
        about: About = About(),  # noqa: B008
    ) -> "ImageFiles":
        """Make it from the (path, label) of each image."""
        labels = np.array([label for _, label in samples], dtype=np.int32)
        return cls(PackedStrings.pack(path for path, _ in samples), labels, classes, about)

    @property
    def samples(self) -> list[tuple[str, int]]:
        """The (path, label) of each image."""
        return list(zip(self.paths, self.labels.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        path = self.paths[index]
        try:
            with open(path, "rb") as file:  # noqa: PTH123  takes half the time of Path.read_bytes
                return Example(EncodedImage(file.read(), path), self.target(index), path)
        except OSError as error:
            raise BrokenImageError(f"{path}: cannot be read ({error.strerror})") from None

    def target(self, index: int) -> Any:
        return int(self.labels[index])

    @property
    def members(self) -> list[np.ndarray] | None:
        return members_of(self.labels, len(self.classes)) if self.target_kind == "class" else None

    def take(self, indices: np.ndarray) -> "ImageFiles":
        """Return the images at these indices."""
        return ImageFiles(self.paths.take(indices), self.labels[indices], self.classes, self.about, self.chosen_by)

    @property
    def num_present(self) -> int:
        return int(np.count_nonzero(np.bincount(self.labels)))

    @property
    def order(self) -> dict[str, object]:
        return self.chosen_by

    def described(
        self,
        choice: str = "",
        *,
        skipped: Mapping[str, Skipped] | None = None,
        order: Mapping[str, object] | None = None,
    ) -> "ImageFiles":
        """Return the same images with more about them: how they were chosen, and what else was skipped."""
        about = replace(
            self.about, choice=choice or self.about.choice, skipped={**self.about.skipped, **(skipped or {})}
        )
        return ImageFiles(self.paths, self.labels, self.classes, about, {**self.chosen_by, **(order or {})})

    def relabel(self, classes: list[str] | None, folder: Path) -> "ImageFiles":
        """Return the same images with labels that are indices into `classes`. None leaves the labels unchanged.

        Args:
            classes: The new classes.
            folder: Where the images are, for the error message.

        Raises:
            InputError: `classes` lacks a class of these images.
        """
        new_labels = np.array(class_indices(classes, self.classes, folder), dtype=np.int32)
        return ImageFiles(self.paths, new_labels[self.labels], classes or self.classes, self.about, self.chosen_by)


def require_folder(path: Path, what: str) -> Path:
    """Return the path, or raise an InputError if it is not a folder. `what` describes the expected folder."""
    if not path.is_dir():
        raise InputError(f"{path}: no such folder ({what})")
    return path


def missing_files(paths: Iterable[str]) -> list[int]:
    """Return which of the paths are no files, by index. Each folder is listed once, since that is fast for many."""

    @cache
    def names_in(folder: str) -> set[str]:
        return set(os.listdir(folder or ".")) if Path(folder).is_dir() else set()  # noqa: PTH208  the names are enough

    return [index for index, path in enumerate(paths) if (split := os.path.split(path))[1] not in names_in(split[0])]


def class_indices(classes: list[str] | None, names: list[str], where: Path) -> list[int]:
    """Return the index in `classes` of each name. Without `classes`, return 0, 1, 2 and so on.

    Args:
        classes: The classes of the training split.
        names: The classes of another split.
        where: Where the other split is, for the error message.

    Raises:
        InputError: `classes` lacks a name.
    """
    if classes is None:
        return list(range(len(names)))
    indices = {name: index for index, name in enumerate(classes)}
    unknown = [name for name in names if name not in indices]
    if unknown:
        raise InputError(
            f"{where / unknown[0]}: class is not in the training split "
            f"({len(unknown)} such {'class' if len(unknown) == 1 else 'classes'}); "
            f"known classes: {', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}; "
            f"move {'it' if len(unknown) == 1 else 'them'} elsewhere, or train a model with all classes"
        )
    return [indices[name] for name in names]
