"""The files that predictions are written to as they come: JSON, JSON Lines, CSV and Parquet.

In JSON, numbers that are not finite are null, as in the other reports.
"""

import csv
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Protocol

from xcit.errors import InputError, WriteError, choose
from xcit.prediction.predictor import Prediction, Predictor, Row
from xcit.storage import aside_of, without_nan, write_atomically

ROW_GROUP = 10_000
"""Rows of a Parquet file that are in memory before they are written."""


class PredictionFile(Protocol):
    """A file that takes predictions one by one. Its memory does not grow with their number."""

    def add(self, prediction: Prediction) -> None: ...

    def finish(self) -> None:
        """Called once, after the last prediction."""


class JsonFile:
    """predictions.json, one JSON value. It is written whole, at the end, from temporary files."""

    def __init__(self, folder: Path, predictor: Predictor) -> None:
        self.path, self.predictor = folder / "predictions.json", predictor
        self.rows = {section: Rows() for section in predictor.sections}

    def add(self, prediction: Prediction) -> None:
        for section, rows in prediction.rows.items():
            self.rows[section].add(rows)

    def finish(self) -> None:
        write_atomically(self.path, self.write)

    def write(self, file: IO[bytes]) -> None:
        if "" in self.rows:
            self.rows[""].copy_to(file)
        else:
            file.write(b"{")
            for section, rows in self.rows.items():
                file.write(f"{json.dumps(section)}: ".encode())
                rows.copy_to(file)
                file.write(b",\n")
            file.write(json.dumps(self.predictor.fixed)[1:].encode())
        file.write(b"\n")


class Rows:
    """A list of JSON objects in a temporary file."""

    def __init__(self) -> None:
        self.file, self.number = TemporaryFile(), 0  # noqa: SIM115  # it goes when this object does

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.file.write(b",\n" if self.number else b"\n")
            self.file.write(json.dumps(without_nan(row)).encode())
            self.number += 1

    def copy_to(self, file: IO[bytes]) -> None:
        """Write the list as JSON."""
        self.file.seek(0)
        file.write(b"[")
        shutil.copyfileobj(self.file, file)
        file.write(b"\n]")


class JsonLinesFile:
    """predictions.jsonl, one JSON object for each image, written as they come."""

    def __init__(self, folder: Path, predictor: Predictor) -> None:
        self.path = folder / "predictions.jsonl"
        with naming(self.path):
            self.file = self.path.open("w", buffering=1)  # by lines

    def add(self, prediction: Prediction) -> None:
        with naming(self.path):
            self.file.write(f"{json.dumps(without_nan(prediction.line))}\n")

    def finish(self) -> None:
        with naming(self.path):
            self.file.close()


class CsvFile:
    """predictions.csv, with the rows of `Prediction.table`, written as they come."""

    def __init__(self, folder: Path, predictor: Predictor) -> None:
        self.path = folder / "predictions.csv"
        with naming(self.path):
            # By lines; names of files may hold bytes that are no text, and keep them.
            self.file = self.path.open("w", newline="", buffering=1, encoding="utf-8", errors="surrogateescape")
            self.writer = csv.DictWriter(self.file, list(predictor.columns), lineterminator="\n")
            self.writer.writeheader()

    def add(self, prediction: Prediction) -> None:
        with naming(self.path):
            self.writer.writerows(prediction.table)

    def finish(self) -> None:
        with naming(self.path):
            self.file.close()


class ParquetFile:
    """predictions.parquet, the rows of `Prediction.table`, written in groups. It has another name until it is whole."""

    def __init__(self, folder: Path, predictor: Predictor) -> None:
        import pyarrow as pa  # here, because the other formats do not need it
        from pyarrow import parquet

        types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
        self.schema = pa.schema([(name, types[kind]) for name, kind in predictor.columns.items()])
        self.path, self.rows = folder / "predictions.parquet", list[Row]()
        self.aside, self.table = aside_of(self.path), pa.Table
        with naming(self.path):
            self.writer = parquet.ParquetWriter(self.aside, self.schema)

    def add(self, prediction: Prediction) -> None:
        # Parquet's text is UTF-8; the name of a file may hold other bytes.
        self.rows += [row | {"file": row["file"].encode(errors="replace").decode()} for row in prediction.table]
        if len(self.rows) >= ROW_GROUP:
            self.write()

    def write(self) -> None:
        with naming(self.path):
            self.writer.write_table(self.table.from_pylist(self.rows, self.schema))
        self.rows = []

    def finish(self) -> None:
        self.write()
        with naming(self.path):
            self.writer.close()
            self.aside.replace(self.path)


FORMATS: Mapping[str, Callable[[Path, Predictor], PredictionFile]] = {
    "json": JsonFile,
    "jsonl": JsonLinesFile,
    "csv": CsvFile,
    "parquet": ParquetFile,
}


def formats_of(given: str) -> list[str]:
    """The formats in a list with commas.

    Raises:
        InputError: one is unknown, or its package is not installed.
    """
    names = [name.strip() for name in given.split(",")]
    for name in names:
        choose(FORMATS, name, "format")
    if "parquet" in names and find_spec("pyarrow") is None:
        raise InputError("format=parquet: needs pyarrow, which is not installed; pip install pyarrow, or take csv")
    return list(dict.fromkeys(names))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of writing name the file."""
    try:
        yield
    except OSError as error:
        raise WriteError(error.errno, error.strerror or str(error), str(path)) from None
