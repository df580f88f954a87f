"""What scripts/predict.py asks of the predictions of a task, and what they hold."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from ..encoded_image import EncodedImage

Row = dict[str, Any]


class Item(NamedTuple):
    """An image that was read."""

    name: str
    picture: Image.Image | None
    """Upright, in RGB; None if it is not needed."""
    pixels: Tensor | None
    """(h, w, C), resized for the model; None if it is predicted in tiles."""
    on_sheet: bool = False
    """Whether it is shown on the contact sheet."""


class Prediction(NamedTuple):
    rows: dict[str, list[Row]]
    """Section of predictions.json → rows. The section "" is the whole file."""
    line: Row
    """All of it as one object, for a line of predictions.jsonl."""
    table: list[Row]
    """Rows of a table: plain values by column, which are the same in all rows of a task."""
    found: list[tuple[str, str]]
    """Each class, and how much of it, for the terminal."""
    shown: list[tuple[str, str]]
    """What was predicted, for the contact sheet: the likeliest class, the labels above their thresholds, or all."""
    counts: dict[str, int]
    """Each class, and what is added to its count over all images."""
    draw: Callable[[], Image.Image]
    """Draws the prediction on the image."""
    mask: np.ndarray | None = None
    """(H, W), the class of each pixel."""


class Predictor(Protocol):
    """What predicts the images of a task."""

    sections: Sequence[str]
    """Of predictions.json. The section "" is the whole file."""
    fixed: Mapping[str, Any]
    """The other sections, which are the same for all images."""
    columns: Mapping[str, type]
    """Of `Prediction.table`."""
    together: bool
    """Whether several images are predicted at once."""
    named: str
    column: str
    """Headings of the names and the amounts in `Prediction.found`."""
    counted: str
    counts: str
    """Headings of a table of `Prediction.counts`."""

    def prepare(self, name: str, image: EncodedImage, shown: bool) -> Item:
        """Called in threads. shown: whether the image is on the contact sheet or drawn by itself."""

    def predict(self, items: Sequence[Item]) -> list[Prediction]: ...

    def too_large(self, items: Sequence[Item]) -> str:
        """What to say if memory was too short for them."""
