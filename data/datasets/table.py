"""The user's own images, listed in a table with their labels: one class, several labels, or numbers."""

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from xcit.errors import InputError

from ..about import About, counted
from ..examples import DIGEST, HELD_OUT, NONE_HELD_OUT, Example, digest_of
from .image_files import ImageFiles, missing_files, require_folder
from .labelling import Labelling, find_labelling
from .packed_strings import PackedStrings
from .read_table import read_table
from .splits import SPELLINGS, require_fold, require_val_fraction, split_named
from .stratified import fold_of, held_out_share


class TableImages(ImageFiles):
    """Image files with the targets and weights of a table."""

    target_kind = ""  # the table says which

    def __init__(
        self,
        paths: PackedStrings,
        targets: np.ndarray,
        weights: np.ndarray,
        labelling: Labelling,
        classes: list[str],
        about: About,
        order: Mapping[str, object],
    ) -> None:
        """
        Args:
            paths: The path of each image.
            targets: What `Labelling.targets` returns.
            weights: (num_images,), float32: how much each image counts.
            labelling: What the targets are.
            classes: The names of the classes, labels or values.
            about: Where the images are from.
            order: What `Examples.order` returns.
        """
        super().__init__(paths, targets, classes, about, order)
        self.weights, self.labelling, self.target_kind = weights, labelling, labelling.kind

    def __getitem__(self, index: int) -> Example:
        return super().__getitem__(index)._replace(weight=float(self.weights[index]))

    def target(self, index: int) -> Any:
        return super().target(index) if self.target_kind == "class" else self.labels[index].copy()

    @property
    def label_table(self) -> np.ndarray:
        return self.labels

    @property
    def members(self) -> list[np.ndarray] | None:
        return self.labelling.members(self.labels, len(self.classes))

    @property
    def num_present(self) -> int | None:  # type: ignore[override]
        counts = self.class_counts
        return None if counts is None else int(np.count_nonzero(counts))


class Division(NamedTuple):
    """Which rows of the table are for what."""

    train: np.ndarray
    val: np.ndarray
    choice: str
    """How the validation images were chosen, for the start-up lines."""
    key: str
    """The same, for `Examples.order`."""


class LabelTable:
    """A table with the path of an image in each row, and its labels. It may say which split an image belongs to.

    Args:
        path: A CSV, TSV or Parquet file; the first line of a CSV file names its columns.
        labels: Columns of the labels: one of class names, or several of 0 and 1 or of numbers.
        image: Column of the paths of the images.
        root: Folder that the paths of the images are relative to; null: the folder of the table.
        kind: Kind of the labels: class (one), classes (several), values (numbers), or auto if it is clear.
        separator: Text between the labels in a column that holds several, such as ";"; null: there are none.
        delimiter: Character between the cells of a CSV file, such as ";"; null: a comma, or a tab for .tsv.
        split: Column that says train, val or test; null: val_fraction or folds divide the images.
        weight: Column of numbers that say how much an image counts in the loss; null: all count alike.
        group: Column of groups, such as patients, whose images stay together in one split; null: no groups.
        val_fraction: Share of each class that is held out if there are neither val nor test images, between 0 and 1.
        folds: Number of folds of a cross-validation; null: val_fraction is held out.
        fold: Number of the fold that is held out, from 0.
        split_seed: Seed of the division into training and validation images.
    """

    def __init__(
        self,
        *,
        path: str,
        labels: list[str],
        image: str = "image",
        root: str | None = None,
        kind: Literal["auto", "class", "classes", "values"] = "auto",
        separator: str | None = None,
        delimiter: str | None = None,
        split: str | None = None,
        weight: str | None = None,
        group: str | None = None,
        val_fraction: float = 0.2,
        folds: Annotated[int, Field(ge=2)] | None = None,
        fold: Annotated[int, Field(ge=0)] | None = None,
        split_seed: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        self.val_fraction = require_val_fraction(val_fraction)
        require_fold(folds, fold)
        if folds and split:
            raise InputError(f"data.folds={folds}: data.split={split} divides the images; leave one of them out")
        self.label_columns, self.kind, self.separator, self.weight = labels, kind, separator, weight
        self.folds, self.fold, self.split_seed = folds, fold, split_seed
        self.split, self.group, self.image = split, group, image
        self.table = read_table(Path(path), delimiter)
        if not len(self.table):
            raise InputError(f"{path}: holds no rows")
        for name in labels:
            self.table.column(name, "data.labels")
        # The paths are made clean, so that two rows with one image are recognized.
        self.root = require_folder(Path(path).parent if root is None else Path(root), "data.root")
        cells = self.table.column(image, "data.image")
        if "" in cells:
            raise self.table.wrong(cells.index(""), image, "is empty; must hold the path of an image")
        self.names = [os.path.normpath(cell) for cell in cells]
        self.paths = PackedStrings.pack(os.path.join(self.root, name) for name in self.names)  # noqa: PTH118  is faster
        if missing := missing_files(self.paths):
            several = f" (and {counted(len(missing) - 1, 'other')})" if len(missing) > 1 else ""
            raise self.table.wrong(missing[0], image, f"{self.paths[missing[0]]}: no such file{several}")
        self.groups = self.names if group is None else self.filled(group, "data.group")
        self.splits = None if split is None else self.read_splits(split)
        self.require_same_for_an_image()

    def train(self) -> TableImages:
        return self.examples(self.division.train, self.classes, self.about, self.order)

    def val(self, classes: list[str] | None = None) -> TableImages:
        return self.examples(self.division.val, classes or self.classes, self.about, self.order)

    def everything(self, classes: list[str] | None = None) -> TableImages:
        """Return all images of a table without splits and folds, otherwise the validation images.

        It is for the evaluation of a model that was not trained on this table.
        """
        if self.splits or self.folds:
            return self.val(classes)
        about = About(str(self.table.path), "; ".join(filter(None, [self.labelling.reason, "all of its images"])))
        return self.examples(self.labelled, classes or self.classes, about, {HELD_OUT: NONE_HELD_OUT})

    def examples(self, rows: np.ndarray, classes: list[str], about: About, order: Mapping[str, object]) -> TableImages:
        """Return the images of some rows."""
        targets = self.labelling.targets(self.table.take(rows), classes)
        weights = np.ones(len(rows), dtype=np.float32)
        if self.weight is not None:
            of_training = rows if order[HELD_OUT] == NONE_HELD_OUT else self.division.train
            mean = self.weights(of_training).mean(dtype=np.float64).astype(np.float32)
            if not mean:
                raise InputError(f"{self.table.path}: column {self.weight}: all weights of the training images are 0")
            weights = self.weights(rows) / mean
        return TableImages(self.paths.take(rows), targets, weights, self.labelling, classes, about, order)

    @cached_property
    def labelled(self) -> np.ndarray:
        """The rows that the classes are read from: those of the training split, or all."""
        rows = np.arange(len(self.table))
        if self.splits is None:
            return rows
        chosen = rows[[name == "train" for name in self.splits]]
        if not len(chosen):
            raise InputError(f"{self.table.path}: column {self.split} gives no row to training; expected train in some")
        return chosen

    @cached_property
    def labelling(self) -> Labelling:
        return find_labelling(self.table.take(self.labelled), self.label_columns, self.kind, self.separator)

    @cached_property
    def classes(self) -> list[str]:
        return self.labelling.classes(self.table.take(self.labelled))

    @cached_property
    def division(self) -> Division:
        """The training and validation rows.

        Raises:
            InputError: There are no images for validation, or a group is in both.
        """
        rows, splits = self.labelled, self.splits or []
        for name in ("val", "test"):
            if name in splits:
                val = np.flatnonzero([split == name for split in splits])
                self.require_groups_apart(rows, val)
                choice = f"column {self.split} divides them" + ("; there are no val rows" if name == "test" else "")
                unused = splits.count("test") if name == "val" else 0
                choice += f"; {counted(unused, 'test image')} not used" if unused else ""
                return Division(rows, val, choice, f"by the column {self.split}")
        targets = self.labelling.targets(self.table.take(rows), self.classes)
        members = self.labelling.members(targets, len(self.classes)) or []
        groups = [self.groups[row] for row in rows]
        if self.folds:
            chosen = fold_of(groups, members, self.folds, self.split_seed) == self.fold
            choice = f"fold {self.fold} of {self.folds} is held out"
            key = f"in fold {self.fold} of {self.folds} by data.split_seed={self.split_seed}"
        else:
            chosen = held_out_share(groups, members, self.val_fraction, self.split_seed)
            choice = f"held out: {100 * self.val_fraction:g} %" + (" of each class" if members else "")
            key = f"by data.split_seed={self.split_seed} ({100 * self.val_fraction:g} %)"
        if not chosen.any() or chosen.all():
            what = f"groups of {self.group}" if self.group else "images of a class"
            raise InputError(f"{self.table.path}: holds too few {what} to hold some out for validation")
        if self.group:
            choice += f", groups of {self.group} together"
        return Division(rows[~chosen], rows[chosen], choice, key)

    @cached_property
    def about(self) -> About:
        """What is said of both splits: how the kind of the labels was decided, and how the images are divided."""
        used = np.concatenate([self.division.train, self.division.val])
        kind = f"kind {self.labelling.kind}" + (f", as {self.labelling.reason}" if self.labelling.reason else "")
        remarks = self.labelling.remarks(self.labelling.targets(self.table.take(used), self.classes))
        return About(str(self.table.path), "; ".join([kind, *remarks, self.division.choice]))

    @cached_property
    def order(self) -> dict[str, object]:
        return {HELD_OUT: self.division.key, DIGEST: digest_of(self.names[row] for row in self.division.val)}

    def weights(self, rows: np.ndarray) -> np.ndarray:
        assert self.weight is not None
        table = self.table.take(rows)
        found = table.numbers(self.weight, "data.weight")
        wrong = np.flatnonzero(~(found >= 0))  # an empty cell is NaN
        if len(wrong):
            cell = table.columns[self.weight][wrong[0]] or "an empty cell"
            raise table.wrong(int(wrong[0]), self.weight, f"{cell}: must be a number that is 0 or more")
        return found

    def filled(self, column: str, key: str) -> list[str]:
        """Return a column, or raise an InputError if a cell is empty."""
        cells = self.table.column(column, key)
        if "" in cells:
            raise self.table.wrong(cells.index(""), column, f"is empty; {key} needs a value in each row")
        return cells

    def read_splits(self, column: str) -> list[str]:
        """Return the split of each row: "train", "val" or "test"."""
        cells = self.filled(column, "data.split")
        split_of = {cell: split_named(cell) for cell in set(cells)}
        if None in split_of.values():
            row = next(row for row, cell in enumerate(cells) if split_of[cell] is None)
            expected = " or ".join(SPELLINGS)
            raise self.table.wrong(row, column, f"{cells[row]!r} is no split; expected {expected}, or a usual spelling")
        return [str(split_of[cell]) for cell in cells]

    def require_same_for_an_image(self) -> None:
        """Raise an InputError if two rows of an image have different splits, groups or labels."""
        first: dict[str, int] = {}
        columns = {name: self.table.columns[name] for name in self.label_columns}
        columns |= {self.split: self.splits} if self.split and self.splits else {}
        columns |= {self.group: self.groups} if self.group else {}
        for row, name in enumerate(self.names):
            before = first.setdefault(name, row)
            for column, cells in columns.items() if before != row else ():
                if cells[before] != cells[row]:
                    raise self.table.wrong(
                        row,
                        column,
                        f"holds {cells[row]!r}, but row {self.table.rows[before]} has the same image with "
                        f"{cells[before]!r}; several labels of an image belong in one row",
                    )

    def require_groups_apart(self, train: np.ndarray, val: np.ndarray) -> None:
        """Raise an InputError if training and validation rows share a group. Without a column, images are groups."""
        trained = {self.groups[row]: row for row in train}
        for row in val.tolist():
            before = trained.get(self.groups[row])
            if before is not None:
                raise self.table.wrong(
                    row,
                    str(self.group),
                    f"{self.groups[row]!r} is for validation here and for training in row {self.table.rows[before]}",
                )
