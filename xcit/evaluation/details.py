"""The details of an evaluation in the run folder: a table of the classes, and pictures of the predictions."""

from functools import partial
from pathlib import Path

from ..engine.task import Details
from ..storage import csv_text, without_nan, write_atomically, write_text

PER_CLASS, PREDICTIONS = "per_class", "predictions"
QUALITY = 90
"""Of the JPEGs."""


def write_details(folder: Path, details: Details, resolution: int, weights: str) -> None:
    """Write the table and the pictures of one evaluation. Those of other resolutions and weights stay.

    The table is predictions/RESOLUTION_WEIGHTS/per_class.csv. Beside it are the pictures, 1.jpg, 2.jpg and so on, and
    further tables, such as confusion.csv.
    """
    place = folder / PREDICTIONS / f"{resolution}_{weights}"
    place.mkdir(parents=True, exist_ok=True)
    for name, rows in {PER_CLASS: details.per_class, **details.tables}.items():
        write_text(place / f"{name}.csv", csv_text([without_nan(row) for row in rows]))
    for number, picture in enumerate(details.pictures, 1):
        write_atomically(place / f"{number}.jpg", partial(picture.save, format="JPEG", quality=QUALITY))
