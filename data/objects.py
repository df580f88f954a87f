"""The objects of an image: boxes, classes and masks, as a data set for detection knows them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Rle = dict[str, Any]
"""A mask as COCO's compressed run-length encoding: {"size": [height, width], "counts": bytes}."""


@dataclass(frozen=True)
class Objects:
    """The objects of one image, in pixels of the upright image."""

    boxes: np.ndarray
    """(N, 4), float32: left, top, right, bottom."""
    labels: np.ndarray
    """(N,), int64: indices into the classes of the data set."""
    crowd: np.ndarray
    """(N,), bool: whether it is a group of objects. Crowds are used only in evaluation."""
    areas: np.ndarray
    """(N,), float32: the area that the annotation states. It decides what is small, medium or large."""
    masks: list[Rle]
    image_id: int

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the image; None without objects."""
        return (self.masks[0]["size"][0], self.masks[0]["size"][1]) if self.masks else None


def decode_masks(masks: Sequence[Rle], height: int, width: int) -> np.ndarray:
    """Decode masks of an image: (N, height, width), uint8, 1 within the object."""
    if not masks:
        return np.zeros((0, height, width), dtype=np.uint8)
    # The decoder returns (height, width, N), with the pixels of a column next to each other.
    return np.ascontiguousarray(mask_coder().decode(list(masks)).transpose(2, 0, 1))


def mask_coder() -> Any:
    """The functions that encode and decode masks. They are imported here, since only detection needs the package."""
    from faster_coco_eval.core import mask

    return mask
