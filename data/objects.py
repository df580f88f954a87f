"""The objects of an image: boxes, classes and masks, as a data set for detection knows them."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Rle = dict[str, Any]
"""A mask as COCO's compressed run-length encoding: {"size": [height, width], "counts": bytes}."""
FARTHEST = 100_000
"""The largest coordinate of a polygon in pixels. The mask coder computes every point of an outline."""
NUMBERS = {int, float}


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


def with_packed_polygons(entry: dict[str, Any]) -> dict[str, Any]:
    """Store polygons as arrays as soon as they are read: a list of numbers takes four times as much memory."""
    shape = entry.get("segmentation")
    if type(shape) is list:
        entry["segmentation"] = [packed(points) for points in shape]
    return entry


def packed(points: Any) -> Any:
    if not (type(points) is list and set(map(type, points)) <= NUMBERS):
        return points
    try:
        return array("d", points)
    except OverflowError:  # an integer beyond all floats, which lies beyond every image, too
        return array("d", [math.inf] * len(points))


class MaskReader:
    """Reads segmentations. It raises a ValueError with the reason for one that is not in COCO's format.

    Polygons of fewer than three points are ignored and counted, as Detectron2 does: many tools export some.
    """

    def __init__(self) -> None:
        self.coder, self.ignored = mask_coder(), 0

    def read(self, shape: Any, height: int, width: int) -> Rle:
        """Polygons, or a run-length encoding that is compressed or not, as a compressed run-length encoding."""
        if not shape:
            raise ValueError("has no segmentation; every object needs a mask, as polygons or a run-length encoding")
        if isinstance(shape, dict):
            return self.compressed(shape, height, width)
        if not (isinstance(shape, list) and all(map(is_polygon, shape))):
            raise ValueError(
                "segmentation must be a list of polygons, each [x1, y1, x2, y2, x3, y3, …], or a run-length encoding"
            )
        polygons = [points.tolist() for points in shape if len(points) >= 6]
        self.ignored += len(shape) - len(polygons)
        if not polygons:
            return self.coder.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)
        if not all(-FARTHEST <= min(points) <= max(points) <= FARTHEST for points in polygons):
            raise ValueError(f"its polygons reach farther than {FARTHEST:,} pixels")
        parts = self.coder.frPyObjects(polygons, height, width)
        return parts[0] if len(parts) == 1 else self.coder.merge(parts)

    def compressed(self, rle: Rle, height: int, width: int) -> Rle:
        """Compress a run-length encoding, unless it is compressed, and check it."""
        size, counts = [height, width], rle.get("counts")
        if rle.get("size") != size:
            raise ValueError(f"the size of its mask is {rle.get('size')}; must be {size}, the image's height and width")
        try:
            if isinstance(counts, list):
                if all(type(run) is int and run >= 0 for run in counts) and sum(counts) == height * width:
                    return self.coder.frPyObjects(rle, height, width)
            elif isinstance(counts, str):
                mask = {"size": size, "counts": counts.encode()}
                self.coder.decode(mask)
                return mask
        except (ValueError, RuntimeError):  # what the decoder raises for damaged encodings
            pass
        raise ValueError(f"the runs of its mask must add up to the {height} × {width} pixels of the image")


def is_polygon(points: Any) -> bool:
    return type(points) is array and len(points) % 2 == 0
