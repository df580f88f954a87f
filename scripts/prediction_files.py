"""What scripts/predict.py writes to its run folder, and what it prints."""

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from functools import partial
from tempfile import TemporaryFile
from typing import IO, Any

from PIL import Image
from rich.table import Table

from xcit.engine.run_folder import RunFolder
from xcit.errors import WriteError
from xcit.prediction.predictor import Prediction, Predictor
from xcit.storage import write_atomically
from xcit.tables import show_table

FEW = 20
"""Images whose predictions are all printed; of more, the classes are counted."""
MOST_CLASSES = 20
"""Classes whose counts are printed."""
COMPRESSION = 1
"""Of PNG files. Pillow's default, 6, takes several times as long and saves little of a photograph."""


class Output:
    """The files of the run folder and what is printed. predictions.json is written whole, at the end.

    Args:
        folder: is made with the first prediction.
        config_yaml: what was asked for.
        predictor: of the task.
        overlays: whether the images are drawn.
        few: whether the prediction of each image is printed.
    """

    def __init__(self, folder: RunFolder, config_yaml: str, predictor: Predictor, *, overlays: bool, few: bool) -> None:
        self.folder, self.config_yaml, self.predictor = folder, config_yaml, predictor
        self.overlays, self.few = overlays, few
        self.images = 0
        self.rows = {section: Rows() for section in predictor.sections}
        self.each, self.counts = Table("image", "class", predictor.column), Counter[str]()

    def add(self, name: str, prediction: Prediction) -> None:
        if not self.images:
            self.folder.create()
            self.folder.describe(self.config_yaml)
        self.images += 1
        for section, rows in prediction.rows.items():
            self.rows[section].add(rows)
        if prediction.mask is not None:
            self.save("masks", name, Image.fromarray(prediction.mask))
        if self.overlays:
            self.save("overlays", name, prediction.draw())
        self.counts.update(prediction.counts)
        if self.few:
            for number, (label, amount) in enumerate(prediction.found or [("—", "")]):
                self.each.add_row("" if number else printable(name), printable(label), amount)

    def save(self, kind: str, name: str, picture: Image.Image) -> None:
        # The suffix is added to the whole name, since photo.jpg and photo.png may lie in one folder.
        path = self.folder.path / kind / f"{name}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(error.errno, error.strerror or str(error), str(path.parent)) from None
        write_atomically(path, partial(picture.save, format="PNG", compress_level=COMPRESSION))

    def finish(self) -> None:
        """Write predictions.json and print the table."""
        write_atomically(self.folder.path / "predictions.json", self.write)
        table = self.each
        if not self.few:
            table = Table(self.predictor.counted, self.predictor.counts)
            for label, number in self.counts.most_common(MOST_CLASSES):
                table.add_row(printable(label), f"{number:,}")
            if len(self.counts) > MOST_CLASSES:
                table.add_row(f"and {len(self.counts) - MOST_CLASSES} more", "")
        show_table(table)

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
    """A list of JSON objects in a temporary file, so that memory does not grow with their number."""

    def __init__(self) -> None:
        self.file, self.number = TemporaryFile(), 0  # noqa: SIM115  # it goes when this object does

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            self.file.write(b",\n" if self.number else b"\n")
            self.file.write(json.dumps(row).encode())
            self.number += 1

    def copy_to(self, file: IO[bytes]) -> None:
        """Write the list as JSON."""
        self.file.seek(0)
        file.write(b"[")
        shutil.copyfileobj(self.file, file)
        file.write(b"\n]")


def printable(text: str) -> str:
    """The name of a file may hold bytes that are no text."""
    return text.encode(errors="replace").decode()
