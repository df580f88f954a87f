"""Reads a CSV or Parquet file as columns of text. Every error names the file, and the row and column where it can."""

import csv
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from xcit.errors import InputError, did_you_mean

from ..about import counted, listed

DELIMITERS = {".csv": ",", ".tsv": "\t"}
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
INTEGER = re.compile(r"[+-]?[0-9]+")
LARGEST = float(np.finfo(np.float32).max)


class Table:
    """A table in memory. A cell is text without spaces around it; an empty cell is an empty text.

    Args:
        path: The file.
        columns: Name of each column → its cells.
        rows: The number of each row, for messages. In a CSV file, 1 is the line with the names of the columns.
        unreadable: Name of each column that holds something else than text, numbers or booleans → its type.
    """

    def __init__(
        self,
        path: Path,
        columns: Mapping[str, list[str]],
        rows: Sequence[int],
        unreadable: Mapping[str, str] | None = None,
    ) -> None:
        self.path, self.columns, self.rows, self.unreadable = path, columns, rows, unreadable or {}

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: np.ndarray) -> "Table":
        """Return the rows at these indices."""
        chosen = indices.tolist()
        columns = {name: [cells[index] for index in chosen] for name, cells in self.columns.items()}
        return Table(self.path, columns, [self.rows[index] for index in chosen], self.unreadable)

    def column(self, name: str, key: str) -> list[str]:
        """Return the cells of a column. key: the option that names it, for the message.

        Raises:
            InputError: There is no such column, or it holds something else than text.
        """
        if name in self.unreadable:
            raise InputError(
                f"{key}={name}: this column of {self.path} holds {self.unreadable[name]}; must hold text or numbers"
            )
        if name not in self.columns:
            names = [*self.columns, *self.unreadable]
            other = "; data.delimiter= names another delimiter" if len(names) == 1 else ""
            near = did_you_mean(name, names)
            raise InputError(f"{key}={name}: no such column in {self.path}{near} (its columns: {listed(names)}{other})")
        return self.columns[name]

    def wrong(self, row: int, column: str, what: str) -> InputError:
        """Return the error for one cell. row: its index."""
        return InputError(f"{self.path}: row {self.rows[row]}, column {column}: {what}")

    def numbers(self, name: str, key: str) -> np.ndarray:
        """Return a column as numbers: (num_rows,), float32, with NaN for an empty cell.

        Raises:
            InputError: There is no such column, or a cell is no number that fits.
        """
        return np.array(
            [self.number(row, name, cell) for row, cell in enumerate(self.column(name, key))], dtype=np.float32
        )

    def number(self, row: int, column: str, cell: str) -> float:
        if not cell:
            return math.nan
        if not is_number(cell):
            point = ", with a decimal point" if "," in cell else ""
            raise self.wrong(row, column, f"{cell!r} is not a number; expected one such as 3, -0.5 or 1e-3{point}")
        if abs(float(cell)) > LARGEST:
            raise self.wrong(row, column, f"{cell} is too large for 32-bit floating point")
        return float(cell)


def is_number(cell: str) -> bool:
    """Return whether a cell is a number in plain decimal notation: no "nan", no "1,000" and no "1_000"."""
    return NUMBER.fullmatch(cell) is not None


def has_comma(cell: str) -> bool:
    """Return whether a cell is a number except for one comma."""
    return cell.count(",") == 1 and is_number(cell.replace(",", "."))


def is_integer(cell: str) -> bool:
    return INTEGER.fullmatch(cell) is not None


def read_table(path: Path, delimiter: str | None = None) -> Table:
    """Read a table.

    Args:
        path: A file that ends in .csv, .tsv or .parquet.
        delimiter: The character between two cells of a CSV file. The default is a comma, or a tab for .tsv.

    Raises:
        InputError: The file cannot be read, or its rows do not fit its columns.
    """
    suffix = path.suffix.lower()
    if suffix not in (*DELIMITERS, ".parquet"):
        raise InputError(f"data.path={path}: must end in .csv, .tsv or .parquet")
    if suffix == ".parquet":
        if delimiter is not None:
            raise InputError(f"data.delimiter={delimiter}: a Parquet file has none; leave it out")
        return read_parquet(path)
    delimiter = DELIMITERS[suffix] if delimiter is None else delimiter
    if len(delimiter) != 1 or delimiter in '"\r\n ':
        raise InputError(f"data.delimiter={delimiter!r}: must be one character, and no space, quote or line break")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return read_csv(path, csv.reader(file, delimiter=delimiter, strict=True))
    except OSError as error:
        raise InputError(f"data.path={path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start}: {error.reason}); save it as UTF-8") from None


def read_csv(path: Path, reader: Any) -> Table:
    """Read the rows of a CSV file. Blank lines are skipped."""
    header: list[str] | None = None
    rows, numbers = [], []
    try:
        for number, cells in enumerate(reader, start=1):
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                require_unique(path, header)
            elif len(cells) != len(header):
                raise InputError(
                    f"{path}: row {number}: has {counted(len(cells), 'cell')}, but the table has "
                    f"{counted(len(header), 'column')}; a cell that contains the delimiter must be quoted, and "
                    "data.delimiter= names another delimiter"
                )
            else:
                rows.append([cell.strip() for cell in cells])
                numbers.append(number)
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: is not valid CSV ({error})") from None
    if header is None:
        raise InputError(f"{path}: is empty; must have a line with the names of its columns")
    columns: Sequence[Sequence[str]] = list(zip(*rows, strict=True)) or [[] for _ in header]
    return Table(path, {name: list(cells) for name, cells in zip(header, columns, strict=True)}, numbers)


def read_parquet(path: Path) -> Table:
    """Read a Parquet file. Its columns must hold text, numbers or booleans; null and NaN are empty cells."""
    if find_spec("pyarrow") is None:
        raise InputError(f"data.path={path}: needs pyarrow, which is not installed; pip install pyarrow, or take CSV")
    import pyarrow as pa  # here, because it is not needed for CSV
    from pyarrow import parquet

    try:
        found = parquet.ParquetFile(path).read()
    except OSError as error:
        raise InputError(f"data.path={path}: cannot be read ({error.strerror or error})") from None
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{path}: is not a Parquet file that can be read ({' '.join(str(error).split())})") from None
    require_unique(path, found.column_names)
    columns, unreadable = {}, {}
    for name in found.column_names:
        cells = [as_text(value) for value in found.column(name).to_pylist()]
        if None in cells:  # an error is raised only if this column is asked for
            unreadable[name] = str(found.schema.field(name).type)
        else:
            columns[name] = [cell or "" for cell in cells]
    return Table(path, columns, range(1, found.num_rows + 1), unreadable)


def as_text(value: Any) -> str | None:
    """Return a value as a cell. None: it is neither text nor a number nor a boolean."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value).strip() if isinstance(value, str | int | float | bool) else None


def require_unique(path: Path, names: Sequence[str]) -> None:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise InputError(f"{path}: has two columns {twice!r}; each column needs a name of its own")
