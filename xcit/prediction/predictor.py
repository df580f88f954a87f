"""What predicts the images of a task for scripts/predict.py: its settings, what it takes and what it returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..preprocessing import Preprocessing


@dataclass(frozen=True)
class Settings:
    """How images are predicted. Sides are in pixels."""

    preprocessing: Preprocessing
    device: torch.device
    top: int
    """Number of classes of a classified image."""
    score: float
    """Lowest score of an object that is drawn and counted."""
    tile: int
    """Side of a tile of an image file; 0: none."""
    overlap: int
    """Of two tiles."""
    tile_input: int
    """Side of the model's input for a tile."""
    overlays: bool


class Item(NamedTuple):
    """An image that was read."""

    name: str
    picture: Image.Image | None
    """Upright, in RGB; None if nothing is drawn on it."""
    pixels: Tensor | None
    """(h, w, C), resized for the model; None if it is predicted in tiles."""


class Prediction(NamedTuple):
    rows: dict[str, list[dict[str, Any]]]
    """Section of predictions.json → rows. The section "" is the whole file."""
    found: list[tuple[str, str]]
    """Each class that was found, and how much of it, for the terminal."""
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
    together: bool
    """Whether several images are predicted at once."""
    column: str
    """Heading of the amounts in `Prediction.found`."""
    counted: str
    counts: str
    """Headings of a table of `Prediction.counts`."""

    def prepare(self, name: str, picture: Image.Image) -> Item:
        """Called in threads. picture: upright, in RGB."""

    def predict(self, items: Sequence[Item]) -> list[Prediction]: ...

    def too_large(self, items: Sequence[Item]) -> str:
        """What to say if memory was too short for them."""
