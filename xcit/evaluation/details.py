"""The details of an evaluation in the run folder: a table of the classes, and pictures of the predictions."""

from functools import partial
from pathlib import Path

from ..engine.task import Details
from ..storage import csv_text, without_nan, write_atomically, write_text

PER_CLASS, PREDICTIONS = "per_class.csv", "predictions"
QUALITY = 90
"""Of the JPEGs."""


def write_details(folder: Path, details: Details, resolution: int, weights: str) -> None:
    """Write the table and the pictures of one evaluation. Those of other resolutions and weights stay.

    The table is predictions/RESOLUTION_WEIGHTS/per_class.csv, and the pictures beside it are 1.jpg, 2.jpg and so on.
    """
    place = folder / PREDICTIONS / f"{resolution}_{weights}"
    place.mkdir(parents=True, exist_ok=True)
    write_text(place / PER_CLASS, csv_text([without_nan(row) for row in details.per_class]))
    for number, picture in enumerate(details.pictures, 1):
        write_atomically(place / f"{number}.jpg", partial(picture.save, format="JPEG", quality=QUALITY))
