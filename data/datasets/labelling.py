"""How the label columns of a table become targets: one class, several labels, or numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from xcit.errors import InputError, did_you_mean

from ..about import listed
from ..examples import members_of
from .read_table import Table, has_comma, is_integer, is_number

Kind = Literal["class", "classes", "values"]
KNOWN = {"0": 0.0, "0.0": 0.0, "false": 0.0, "1": 1.0, "1.0": 1.0, "true": 1.0}
"""What a cell of a label's own column may hold, in upper or lower case. An empty one means that it is unknown."""


@dataclass(frozen=True)
class Labelling:
    """Which columns hold the labels, and what kind of target they are."""

    kind: Kind
    reason: str
    """Why it is this kind, if `data.kind` does not say so."""
    columns: list[str]
    separator: str | None

    @property
    def has_names(self) -> bool:
        """Whether one column holds the names of the classes. Otherwise the columns are the classes."""
        return self.kind == "class" or self.separator is not None

    def names_in(self, table: Table, row: int, cell: str) -> list[str]:
        """Return the names in a cell. A cell of several labels may be empty.

        Raises:
            InputError: A name is empty.
        """
        column = self.columns[0]
        if self.separator is None:
            if not cell:
                raise table.wrong(row, column, "is empty; must hold the name of a class")
            return [cell]
        names = [name.strip() for name in cell.split(self.separator)] if cell else []
        if not all(names):
            raise table.wrong(row, column, f"{cell!r} holds an empty label between two {self.separator!r}")
        return names

    def classes(self, table: Table) -> list[str]:
        """Return the names of the classes: the sorted names in the cells (whole numbers by value), or the columns."""
        if not self.has_names:
            return list(self.columns)
        cells = table.column(self.columns[0], "data.labels")
        found = {name for row, cell in enumerate(cells) for name in self.names_in(table, row, cell)}
        if not found:
            raise InputError(f"{table.path}: column {self.columns[0]} holds no labels")
        return sorted(found, key=lambda name: (int(name), name)) if all(map(is_integer, found)) else sorted(found)

    def targets(self, table: Table, classes: Sequence[str]) -> np.ndarray:
        """Return the target of each row: (num_rows,), int64, for one class; otherwise (num_rows, num_classes), float32.

        Raises:
            InputError: A cell is not what this kind of target needs, or holds a name that is not in `classes`.
        """
        if self.has_names:
            return self.named_targets(table, classes)
        if set(classes) != set(self.columns):
            raise InputError(
                f"data.labels=[{','.join(self.columns)}]: must be the labels of the model: {listed(list(classes))}"
            )
        if self.kind == "values":
            targets = np.stack([table.numbers(name, "data.labels") for name in classes], axis=1)
        else:
            targets = np.stack([known_labels(table, name) for name in classes], axis=1)
        empty = np.flatnonzero(np.isnan(targets).all(axis=1))
        if len(empty):
            raise table.wrong(int(empty[0]), ", ".join(self.columns), "is empty; a row needs a label at least")
        return targets

    def named_targets(self, table: Table, classes: Sequence[str]) -> np.ndarray:
        indices = {name: index for index, name in enumerate(classes)}
        targets = np.zeros(len(table), np.int64) if self.kind == "class" else np.zeros((len(table), len(classes)), "f4")
        for row, cell in enumerate(table.column(self.columns[0], "data.labels")):
            for name in self.names_in(table, row, cell):
                if name not in indices:
                    other = did_you_mean(name, classes)
                    what = (
                        f"{name!r} is not a class of the training split{other} (its classes: {listed(list(classes))})"
                    )
                    raise table.wrong(row, self.columns[0], what)
                if self.kind == "class":
                    targets[row] = indices[name]
                else:
                    targets[row, indices[name]] = 1
        return targets

    def members(self, targets: np.ndarray, num_classes: int) -> list[np.ndarray] | None:
        """Return the images of each class, as `Examples.members` does."""
        if self.kind == "values":
            return None
        if self.kind == "classes":
            return [np.flatnonzero(column == 1) for column in targets.T]
        return members_of(targets, num_classes)

    def remarks(self, targets: np.ndarray) -> list[str]:
        """Say how many labels are missing, if some are."""
        said = []
        if self.kind != "class" and (missing := int(np.isnan(targets).sum())):
            said.append(f"{missing:,} of {targets.size:,} {'values' if self.kind == 'values' else 'labels'} unknown")
        if self.kind == "classes" and (without := int((targets == 0).all(axis=1).sum())):
            said.append(f"{without:,} images have no label")
        return said


def known_labels(table: Table, column: str) -> np.ndarray:
    """Return the column of one label: (num_rows,), float32, 0 or 1, and NaN for an empty cell."""
    cells = table.column(column, "data.labels")
    for row, cell in enumerate(cells):
        if cell and cell.lower() not in KNOWN:
            names = "; for a column that holds several labels give data.separator="
            raise table.wrong(row, column, f"{cell!r} is not 0, 1, true or false{names}")
    return np.array([KNOWN[cell.lower()] if cell else math.nan for cell in cells], dtype=np.float32)


def find_labelling(table: Table, columns: list[str], kind: Kind | Literal["auto"], separator: str | None) -> Labelling:
    """Decide what the label columns hold. The rules are in docs/data.md.

    Raises:
        InputError: A column does not exist, the options contradict each other, or kind=auto cannot be decided.
    """
    held = {name: held_by(table, name) for name in columns}
    if not columns or len(held) < len(columns):
        raise InputError(f"data.labels=[{','.join(columns)}]: must name at least one column, and each once")
    if separator is not None:
        if len(columns) > 1 or kind not in ("auto", "classes") or not separator.strip():
            raise InputError(
                f"data.separator={separator!r}: must be a text that separates the labels in one column "
                f"(data.kind is {kind}, data.labels names {len(columns)})"
            )
        return Labelling("classes", f"data.separator is {separator!r}" * (kind == "auto"), columns, separator)
    if kind == "class" and len(columns) > 1:
        raise InputError(f"data.kind=class: takes one label column; data.labels names {len(columns)}")
    if kind != "auto":
        return Labelling(kind, "", columns, None)
    found, reason = (decide_one if len(columns) == 1 else decide_several)(held)
    return Labelling(found, reason, columns, None)


def held_by(table: Table, column: str) -> str:
    """Return what a column holds: "labels" (0 and 1), "whole numbers", "numbers", "names", or "numbers and names"."""
    cells = {cell for cell in table.column(column, "data.labels") if cell}
    if not cells:
        raise InputError(f"{table.path}: column {column} is empty")
    numbers = sum(map(is_number, cells))
    if len(cells) <= len(KNOWN) and all(cell.lower() in KNOWN for cell in cells):
        return "labels"
    if numbers == len(cells):
        return "whole numbers" if all(map(is_integer, cells)) else "numbers"
    if all(is_number(cell) or has_comma(cell) for cell in cells):
        return "numbers with a decimal comma"
    return "numbers and names" if numbers else "names"


def decide_one(held: dict[str, str]) -> tuple[Kind, str]:
    ((column, what),) = held.items()
    if what == "names":
        return "class", f"column {column} holds names"
    if what == "numbers":
        return "values", f"column {column} holds numbers with decimals"
    what = "only 0 and 1, or true and false" if what == "labels" else what
    raise InputError(
        f"data.kind=auto: column {column} holds {what}; give data.kind=class if these are classes, "
        "data.kind=values if they are numbers to predict, or data.kind=classes if it is a label that images may have"
    )


def decide_several(held: dict[str, str]) -> tuple[Kind, str]:
    if set(held.values()) == {"labels"}:
        return "classes", f"{len(held)} columns hold only 0 and 1"
    if set(held.values()) <= {"whole numbers", "numbers"}:
        return "values", f"{len(held)} columns hold numbers"
    column, what = next((name, what) for name, what in held.items() if what not in ("whole numbers", "numbers"))
    if what != "labels":
        raise InputError(
            f"data.kind=auto: column {column} holds {what}; several label columns must all hold 0 and 1 "
            "(data.kind=classes) or numbers (data.kind=values)"
        )
    raise InputError(
        f"data.kind=auto: column {column} holds only 0 and 1, but other columns hold other numbers; "
        "give data.kind=values if all are numbers to predict"
    )
