"""What scripts/predict.py writes to its run folder, and what it prints."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image
from rich.table import Table

from xcit.engine.run_folder import RunFolder
from xcit.errors import WriteError
from xcit.prediction.pictures import ContactSheet
from xcit.prediction.predictor import Item, Prediction, Predictor
from xcit.storage import write_atomically
from xcit.tables import show_table

from .prediction_tables import FORMATS, PredictionFile

FEW = 20
"""Images whose predictions are all printed; of more, the classes are counted."""
MOST_CLASSES = 20
"""Classes whose counts are printed."""
COMPRESSION = 1
"""Of PNG files. Pillow's default, 6, takes several times as long and saves little of a photograph."""


class Output:
    """The files of the run folder and what is printed.

    Args:
        folder: is made with the first prediction.
        config_yaml: what was asked for.
        predictor: of the task.
        formats: of the predictions; see `FORMATS`.
        overlays: whether each image is drawn.
        sheet: the contact sheet; None for none.
        few: whether the prediction of each image is printed.
    """

    def __init__(
        self,
        folder: RunFolder,
        config_yaml: str,
        predictor: Predictor,
        *,
        formats: Sequence[str],
        overlays: bool,
        sheet: ContactSheet | None,
        few: bool,
    ) -> None:
        self.folder, self.config_yaml, self.predictor = folder, config_yaml, predictor
        self.formats, self.overlays, self.sheet, self.few = formats, overlays, sheet, few
        self.images = 0
        self.files: list[PredictionFile] = []
        self.each, self.counts = Table("image", predictor.named, predictor.column), Counter[str]()

    def add(self, item: Item, prediction: Prediction) -> None:
        if not self.images:
            self.folder.create()
            self.folder.describe(self.config_yaml)
            self.files = [FORMATS[name](self.folder.path, self.predictor) for name in self.formats]
        self.images += 1
        for file in self.files:
            file.add(prediction)
        if prediction.mask is not None:
            self.save(Path("masks", f"{item.name}.png"), Image.fromarray(prediction.mask))
        # A classified image is on the contact sheet as it is, since its classes are written below it.
        alone = item.on_sheet and not self.predictor.together
        drawn = prediction.draw() if self.overlays or alone else None
        if self.overlays and drawn:
            self.save(Path("overlays", f"{item.name}.png"), drawn)
        picture = drawn if alone else item.picture
        if self.sheet and item.on_sheet and picture:
            self.sheet.add(picture, [" ".join(one) for one in prediction.shown] or ["—"], item.name)
        self.counts.update(prediction.counts)
        if self.few:
            for number, (label, amount) in enumerate(prediction.found or [("—", "")]):
                self.each.add_row("" if number else printable(item.name), printable(label), amount)

    def save(self, name: Path, picture: Image.Image) -> None:
        # The suffix is added to the whole name, since photo.jpg and photo.png may lie in one folder.
        path = self.folder.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(error.errno, error.strerror or str(error), str(path.parent)) from None
        write_atomically(path, partial(picture.save, format="PNG", compress_level=COMPRESSION))

    def finish(self) -> None:
        """Complete the files, draw the contact sheet and print the table."""
        for file in self.files:
            file.finish()
        if self.sheet and self.sheet.cells:
            self.save(Path("contact_sheet.png"), self.sheet.draw())
        table = self.each
        if not self.few:
            table = Table(self.predictor.counted, self.predictor.counts)
            for label, number in self.counts.most_common(MOST_CLASSES):
                table.add_row(printable(label), f"{number:,}")
            if len(self.counts) > MOST_CLASSES:
                table.add_row(f"and {len(self.counts) - MOST_CLASSES} more", "")
        if table.row_count:  # numbers are not counted
            show_table(table)


def printable(text: str) -> str:
    """The name of a file may hold bytes that are no text."""
    return text.encode(errors="replace").decode()
