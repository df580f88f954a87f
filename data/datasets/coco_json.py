"""Reads a JSON file in COCO's format, checks it, and converts it to arrays, whose memory forked workers share."""

import gc
import json
import math
from collections import Counter
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np

from xcit.errors import InputError

from ..objects import NUMBERS, MaskReader, Objects, with_packed_polygons
from .packed_strings import PackedStrings

LARGEST = 1e30
"""The largest coordinate or area. They are stored as float32, which ends at 3e38."""
BEYOND = 1.0
"""A box that reaches farther out of its image than this, in pixels, is counted. COCO's own boxes are rounded."""


@dataclass(frozen=True)
class CocoJson:
    """What a JSON file says. Images are in the order of their ids; the objects of an image are neighbours."""

    path: Path
    classes: list[str]
    """The names of the categories in the order of their ids, which may have gaps. Categories of the same name are told
    apart as "name (id 7)"."""
    category_ids: list[int]
    renamed: list[str]
    """The classes that are told apart so."""
    file_names: PackedStrings
    image_ids: np.ndarray
    """(num_images,), int64."""
    sizes: np.ndarray
    """(num_images, 2), int64: height and width."""
    starts: np.ndarray
    """(num_images + 1,), int64: the objects of image i are those from starts[i] to starts[i + 1]."""
    boxes: np.ndarray
    """(num_objects, 4), float32: left, top, right, bottom, within the image."""
    labels: np.ndarray
    """(num_objects,), int64: indices into classes."""
    crowd: np.ndarray
    """(num_objects,), bool."""
    areas: np.ndarray
    """(num_objects,), float32."""
    counts: np.ndarray
    """The compressed masks of all objects, one after the other, uint8."""
    counts_ends: np.ndarray
    """(num_objects,), int64: where each mask ends in counts."""
    without_area: int
    """Objects that were dropped, because their boxes have no area within the image."""
    clipped: int
    """Objects whose boxes reached out of the image."""
    ignored: list[Any]
    """For each polygon of fewer than three points, which is ignored, the id of its annotation."""

    def objects(self, image: int) -> Objects:
        """Return the objects of an image, given by its number."""
        first, end = int(self.starts[image]), int(self.starts[image + 1])
        size = self.sizes[image].tolist()
        edges = [int(self.counts_ends[first - 1]) if first else 0, *self.counts_ends[first:end].tolist()]
        masks = [{"size": size, "counts": self.counts[start:stop].tobytes()} for start, stop in pairwise(edges)]
        rows = slice(first, end)
        return Objects(
            self.boxes[rows],
            self.labels[rows],
            self.crowd[rows],
            self.areas[rows],
            masks,
            int(self.image_ids[image]),
        )

    def trainable(self) -> np.ndarray:
        """Return the numbers of the images with an object that is no crowd."""
        learnt_before = np.concatenate([[0], np.cumsum(~self.crowd)])
        return np.flatnonzero(np.diff(learnt_before[self.starts]))


def read_coco_json(path: Path, *, for_training: bool) -> CocoJson:
    """Read a file.

    Args:
        path: The JSON file.
        for_training: Whether boxes are clipped to their images and objects without area are dropped. COCO's metrics
            need all objects as they are.

    Raises:
        InputError: There is no such file, it is not JSON in COCO's format, or it contradicts itself.
    """
    collects = gc.isenabled()
    gc.disable()  # it would look through millions of new objects, and free none
    try:
        return Reader(path, for_training).read()
    finally:
        if collects:
            gc.enable()


class Reader:
    """Reads one file. Every error names the file, and the image or the annotation by its id."""

    def __init__(self, path: Path, for_training: bool) -> None:
        self.path, self.for_training, self.masks = path, for_training, MaskReader()

    def read(self) -> CocoJson:
        content = self.load()
        images, annotations, categories = (self.listed(content, key) for key in ("images", "annotations", "categories"))
        del content
        classes, category_ids, renamed = self.read_categories(categories)
        class_of = {category: index for index, category in enumerate(category_ids)}
        images.sort(key=lambda image: self.integer(image, "id", "image"))
        image_of: dict[int, int] = {}
        for number, image in enumerate(images):
            image_of[image["id"]] = number
        if len(image_of) < len(images):
            twice = Counter(image["id"] for image in images).most_common(1)[0][0]
            raise self.wrong("image", twice, "is listed twice; each image id must be unique")
        sizes = [self.size_of(image) for image in images]
        file_names = PackedStrings.pack(self.file_name_of(image) for image in images)

        # Read the annotations one by one, and free each one.
        belongs, labels, crowd, counts = [], [], [], []
        ignored: list[Any] = []
        boxes, areas = np.empty((len(annotations), 4)), np.empty(len(annotations))
        for row, annotation in enumerate(annotations):
            image_id = self.integer(annotation, "image_id", "annotation")
            number = image_of.get(image_id, -1)
            if number < 0:
                raise self.wrong_annotation(annotation, f"image_id {image_id} is not among the images of this file")
            category = self.integer(annotation, "category_id", "annotation")
            if category not in class_of:
                raise self.wrong_annotation(annotation, f"category_id {category} is not among its categories")
            boxes[row] = self.box_of(annotation)
            belongs.append(number)
            labels.append(class_of[category])
            crowd.append(self.crowd_of(annotation))
            areas[row] = self.area_of(annotation)
            try:
                counts.append(self.masks.read(annotation.get("segmentation"), *sizes[number])["counts"])
            except ValueError as error:
                raise self.wrong_annotation(annotation, str(error)) from None
            ignored += [annotation.get("id", "without id")] * (self.masks.ignored - len(ignored))
            annotations[row] = {}
        del annotations
        # Count the pixels of many masks in one call, which is faster. All in one call would need much memory.
        masks = ({"size": sizes[number], "counts": runs} for number, runs in zip(belongs, counts, strict=True))
        parts = iter(lambda: list(islice(masks, 1000)), [])
        mask_areas = np.array([area for part in parts for area in self.masks.coder.area(part)], dtype=float)
        areas = np.where(np.isnan(areas), mask_areas, areas)

        # For training, clip the boxes to their images and drop those without area. Sort the others by image.
        boxes[:, 2:] += boxes[:, :2]
        inside, has_area = boxes, np.ones(len(boxes), dtype=bool)
        if self.for_training:
            inside = boxes.clip(0, np.tile(np.array(sizes)[belongs][:, ::-1], 2))
            has_area = np.all(inside[:, 2:].astype(np.float32) > inside[:, :2].astype(np.float32), axis=1)
            has_area &= mask_areas > 0
        order = np.argsort(belongs, kind="stable")
        order = order[has_area[order]]
        return CocoJson(
            self.path,
            classes,
            category_ids,
            renamed,
            file_names,
            image_ids=np.array(list(image_of), dtype=np.int64),
            sizes=np.array(sizes, dtype=np.int64),
            starts=np.searchsorted(np.array(belongs)[order], np.arange(len(sizes) + 1)),
            boxes=inside[order].astype(np.float32),
            labels=np.array(labels, dtype=np.int64)[order],
            crowd=np.array(crowd, dtype=bool)[order],
            areas=areas[order].astype(np.float32),
            counts=np.frombuffer(b"".join(counts[row] for row in order), dtype=np.uint8),
            counts_ends=np.cumsum([len(counts[row]) for row in order], dtype=np.int64),
            without_area=int(np.count_nonzero(~has_area)),
            clipped=int(np.count_nonzero((np.abs(boxes - inside) > BEYOND).any(1) & has_area)),
            ignored=ignored,
        )

    def load(self) -> Any:
        def refuse(constant: str) -> None:
            raise ValueError(f"it holds {constant}, which is no number in JSON")

        try:
            return json.loads(self.path.read_bytes(), parse_constant=refuse, object_hook=with_packed_polygons)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.path}: is not JSON ({error})") from None

    def listed(self, content: Any, key: str) -> list[dict[str, Any]]:
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, list):
            expected = "must be an object with the lists images, annotations and categories"
            raise InputError(f"{self.path}: has no list {key!r}; COCO's format: {expected}")
        if not found and (self.for_training or key != "annotations"):
            raise InputError(f"{self.path}: its list {key!r} is empty")
        if not all(isinstance(entry, dict) for entry in found):
            raise InputError(f"{self.path}: its list {key!r} must contain only JSON objects")
        return found

    def read_categories(self, categories: list[dict[str, Any]]) -> tuple[list[str], list[int], list[str]]:
        """The classes and their ids in the order of the ids, and the classes that shared a name before."""
        categories.sort(key=lambda category: self.integer(category, "id", "category"))
        ids, names = [], []
        for category in categories:
            name = category.get("name")
            if not isinstance(name, str):
                raise self.wrong("category", category["id"], f"name is {name!r}; must be a text")
            ids.append(category["id"])
            names.append(name)
        shared = {name for name, times in Counter(names).items() if times > 1}
        classes = [name_with_id(*pair) if pair[0] in shared else pair[0] for pair in zip(names, ids, strict=True)]
        for values, key in ((ids, "id"), (classes, "name")):
            value, times = Counter(map(str, values)).most_common(1)[0]
            if times > 1:
                raise InputError(f"{self.path}: has {times} categories of {key} {value}; each {key} must be unique")
        return classes, ids, [new for new, name in zip(classes, names, strict=True) if name in shared]

    def size_of(self, image: dict[str, Any]) -> tuple[int, int]:
        height, width = image.get("height"), image.get("width")
        if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
            raise self.wrong("image", image["id"], f"height and width are {height!r} and {width!r}; must be pixels")
        if height * width >= 2**32:  # the mask coder counts pixels in 32 bits
            sides = f"{shortened(height)} and {shortened(width)}"
            raise self.wrong("image", image["id"], f"height and width are {sides}; must be fewer than 2^32 pixels")
        return height, width

    def file_name_of(self, image: dict[str, Any]) -> str:
        name = image.get("file_name")
        if not (isinstance(name, str) and name):
            raise self.wrong("image", image["id"], f"file_name is {name!r}; must be a text")
        return name

    def box_of(self, annotation: dict[str, Any]) -> list[float]:
        box = annotation.get("bbox")
        if not (type(box) is list and len(box) == 4 and all(map(is_number, box)) and box[2] >= 0 and box[3] >= 0):
            raise self.wrong_annotation(
                annotation,
                f"bbox is {shortened(box)}; must be [left, top, width, height] in pixels, none of the last two below 0",
            )
        return box

    def area_of(self, annotation: dict[str, Any]) -> float:
        """The stated area. COCO's format demands it, but other tools leave it out: NaN, for the area of the mask."""
        area = annotation.get("area")
        if area is None:
            return math.nan
        if not is_number(area):
            raise self.wrong_annotation(annotation, f"area is {shortened(area)}; must be a number")
        return area

    def crowd_of(self, annotation: dict[str, Any]) -> bool:
        crowd = annotation.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise self.wrong_annotation(annotation, f"iscrowd is {shortened(crowd)}; must be 0, 1, true or false")
        return bool(crowd)

    def integer(self, entry: dict[str, Any], key: str, what: str) -> int:
        value = entry.get(key)
        if type(value) is not int or abs(value) >= 2**63:
            name = entry.get("id", "without id") if key != "id" else shortened(value).strip("'")
            raise self.wrong(what, name, f"{key} is {shortened(value)}; must be an integer below 2^63")
        return value

    def wrong(self, what: str, name: Any, reason: str) -> InputError:
        return InputError(f"{self.path}: {what} {name}: {reason}")

    def wrong_annotation(self, annotation: dict[str, Any], reason: str) -> InputError:
        return self.wrong("annotation", annotation.get("id", "without id"), reason)


def name_with_id(name: str, number: int) -> str:
    """The class of a category whose name others have, too."""
    return f"{name} (id {number})"


def is_number(value: Any) -> bool:
    return type(value) in NUMBERS and abs(value) <= LARGEST
