"""What scripts/predict.py does with an image, for each task: preprocessing, prediction, rows of JSON and pictures."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..evaluation.detection import categories, corner_and_size, encoded
from ..evaluation.drawing import color_of, draw_objects, draw_segments, with_legend
from ..models.dense.mask_rcnn import Detections, paste
from ..preprocessing import Preprocessing
from ..tasks.load import LoadedTask
from .detection_tiles import detect_in_tiles
from .predictor import Item, Prediction, Predictor, Settings

LONGEST_SHOWN = 1024
"""Longer side in pixels of the pictures of classified images. The images of a batch are in memory together."""
LARGEST_TILE = 1024
"""Side of a tile in pixels that is proposed where memory is short."""
MOST_8_BIT = 256
"""Classes that a mask with 8 bits can hold."""


class Classifier:
    """Images → the most likely classes."""

    sections: Sequence[str] = ("",)
    fixed: Mapping[str, Any] = {}
    together = True
    column, counted, counts = "probability", "most likely class", "images"

    def __init__(self, loaded: LoadedTask, settings: Settings) -> None:
        self.model, self.classes, self.settings = loaded.task.model.to(settings.device), loaded.classes, settings

    def prepare(self, name: str, picture: Image.Image) -> Item:
        pixels = self.settings.preprocessing.pixels(picture)
        if self.settings.overlays:
            picture.thumbnail((LONGEST_SHOWN, LONGEST_SHOWN))
        return Item(name, picture if self.settings.overlays else None, pixels)

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        pixels = torch.stack([item.pixels for item in items if item.pixels is not None])
        logits = self.model(self.settings.preprocessing.normalize(pixels.to(self.settings.device)))
        best = logits.float().softmax(dim=1).topk(min(self.settings.top, logits.shape[1]))
        return [
            self.described(item, labels, shares)
            for item, labels, shares in zip(items, best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def too_large(self, items: Sequence[Item]) -> str:
        images = items[0].name if len(items) == 1 else f"{items[0].name} and {len(items) - 1} more"
        return f"{images}: do not fit into memory together; a smaller batch_size= takes less"

    def described(self, item: Item, labels: list[int], shares: list[float]) -> Prediction:
        pairs = list(zip(labels, shares, strict=True))
        row = {
            "file": item.name,
            "classes": [{"name": self.classes[i], "index": i, "probability": share} for i, share in pairs],
        }
        found = [(self.classes[i], f"{share:.3f}") for i, share in pairs]

        def draw() -> Image.Image:
            assert item.picture is not None
            return with_legend(item.picture, [(f"{self.classes[i]}: {share:.0%}", color_of(i)) for i, share in pairs])

        return Prediction({"": [row]}, found, {found[0][0]: 1}, draw)


class Detector:
    """Images → objects, one image at a time, so that no result depends on other images."""

    sections: Sequence[str] = ("images", "annotations")
    together = False
    column, counted, counts = "objects", "class", "objects"

    def __init__(self, loaded: LoadedTask, settings: Settings) -> None:
        self.task: Any = loaded.task.to(settings.device)
        self.classes, self.settings = loaded.classes, settings
        self.fixed: Mapping[str, Any] = {"categories": categories(self.classes)}
        self.images = self.annotations = 0
        """Counted for their ids in COCO's format, which begin at 1."""

    def prepare(self, name: str, picture: Image.Image) -> Item:
        in_tiles = is_tiled(picture, self.settings)
        return Item(name, picture, None if in_tiles else self.settings.preprocessing.pixels(picture))

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        return [self.described(item.name, item.picture, self.detect(item)) for item in items if item.picture]

    def too_large(self, items: Sequence[Item]) -> str:
        return does_not_fit(items[0], self.settings)

    def detect(self, item: Item) -> Detections:
        """In pixels of the image file, on the CPU."""
        assert item.picture is not None
        if item.pixels is None:
            found = self.in_tiles(item.picture)
        else:
            found = self.of_pixels(item.pixels, self.settings.preprocessing, size_of(item.picture))
        return Detections(*(part.cpu() for part in found))

    def of_pixels(self, pixels: Tensor, preprocessing: Preprocessing, size: tuple[int, int]) -> Detections:
        return self.task.predict(preprocessing.normalize(pixels[None].to(self.settings.device)), size)

    def in_tiles(self, picture: Image.Image) -> Detections:
        def of_tile(part: Image.Image) -> Detections:
            preprocessing = at_scale(self.settings, part)
            return self.of_pixels(preprocessing.pixels(part), preprocessing, size_of(part))

        threshold = self.task.heads.roi_heads.nms_thresh
        return detect_in_tiles(of_tile, picture, self.settings.tile, self.settings.overlap, threshold)

    def described(self, name: str, picture: Image.Image, found: Detections) -> Prediction:
        self.images += 1
        size, rows = size_of(picture), []
        for box, score, label, mask in zip(*found, strict=True):
            self.annotations += 1
            whole = paste(mask, box, size)
            rle = encoded(whole)
            rows.append(
                {
                    "id": self.annotations,
                    "image_id": self.images,
                    "category_id": int(label),
                    "bbox": corner_and_size(box),
                    "score": float(score),
                    "area": int(whole.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": list(size), "counts": rle["counts"].decode()},
                }
            )
        image = {"id": self.images, "file_name": name, "height": size[0], "width": size[1]}
        sure = Detections(*(part[found.scores >= self.settings.score] for part in found))
        objects = Counter(self.classes[label] for label in sure.labels.tolist())

        def draw() -> Image.Image:
            masks = (paste(mask, box, size).numpy() for mask, box in zip(sure.masks, sure.boxes, strict=True))
            return draw_objects(
                picture, sure.boxes.numpy(), sure.labels.tolist(), sure.scores.tolist(), masks, self.classes
            )

        found_here = [(label, str(number)) for label, number in objects.most_common()]
        return Prediction({"images": [image], "annotations": rows}, found_here, dict(objects), draw)


class Segmenter:
    """Images → the class of each pixel, one image at a time, so that no result depends on other images."""

    sections: Sequence[str] = ("",)
    fixed: Mapping[str, Any] = {}
    together = False
    column, counted, counts = "share", "class", "images that show it"

    def __init__(self, loaded: LoadedTask, settings: Settings) -> None:
        self.task: Any = loaded.task.to(settings.device)
        self.classes, self.settings = loaded.classes, settings
        self.own_inference = self.task.inference, self.task.window, self.task.stride

    def prepare(self, name: str, picture: Image.Image) -> Item:
        return Item(name, picture, self.preprocessing(picture).pixels(picture))

    def preprocessing(self, picture: Image.Image) -> Preprocessing:
        return at_scale(self.settings, picture) if is_tiled(picture, self.settings) else self.settings.preprocessing

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        return [self.described(item.name, item.picture, self.segment(item)) for item in items if item.picture]

    def too_large(self, items: Sequence[Item]) -> str:
        return does_not_fit(items[0], self.settings)

    def segment(self, item: Item) -> np.ndarray:
        """The class of each pixel of the image file, (H, W)."""
        assert item.picture is not None and item.pixels is not None
        task, settings = self.task, self.settings
        task.inference, task.window, task.stride = self.own_inference
        if is_tiled(item.picture, settings):
            # The task's sliding windows are the tiles; where they overlap, their logits are averaged.
            stride = round(settings.tile_input * (1 - settings.overlap / settings.tile))
            task.inference, task.window, task.stride = "slide", settings.tile_input, max(1, stride)
        image = self.preprocessing(item.picture).normalize(item.pixels[None].to(settings.device))
        return task.predict_classes(image, size_of(item.picture)).cpu().numpy()

    def described(self, name: str, picture: Image.Image, mask: np.ndarray) -> Prediction:
        pixels = np.bincount(mask.ravel(), minlength=len(self.classes))
        order = [int(label) for label in np.argsort(-pixels, kind="stable") if pixels[label]]
        shares = {label: float(pixels[label] / mask.size) for label in order}
        row = {
            "file": name,
            "height": picture.height,
            "width": picture.width,
            "classes": [{"name": self.classes[i], "index": i, "share": share} for i, share in shares.items()],
        }
        found = [(self.classes[i], f"{100 * share:.1f} %") for i, share in shares.items()]
        mask = mask.astype(np.uint8 if len(self.classes) <= MOST_8_BIT else np.uint16)
        counts = {self.classes[label]: 1 for label in order}
        return Prediction({"": [row]}, found, counts, lambda: draw_segments(picture, mask, self.classes), mask)


PREDICTORS: dict[str, Callable[[LoadedTask, Settings], Predictor]] = {
    "classify": Classifier,
    "distill": Classifier,
    "detect": Detector,
    "segment": Segmenter,
}
"""Task → what predicts its images."""


def size_of(picture: Image.Image) -> tuple[int, int]:
    """(height, width)."""
    return picture.height, picture.width


def is_tiled(picture: Image.Image, settings: Settings) -> bool:
    """Whether an image is cut into tiles: it is larger than one."""
    return 0 < settings.tile < max(picture.size)


def at_scale(settings: Settings, picture: Image.Image) -> Preprocessing:
    """The preprocessing of a part of an image, or of the whole one, that makes `tile_input` of `tile` pixels."""
    height, width = (max(1, round(side * settings.tile_input / settings.tile)) for side in size_of(picture))
    return replace(settings.preprocessing, size=(min(height, width), max(height, width)))


def does_not_fit(item: Item, settings: Settings) -> str:
    """The line for an image that memory was too short for, with a tile that takes less."""
    assert item.picture is not None
    if not is_tiled(item.picture, settings):
        smaller = min(LARGEST_TILE, settings.preprocessing.size[0])
        remedy = f"tile={smaller} without resolution= predicts it in parts"
    else:
        remedy = f"a smaller tile= than {settings.tile} takes less"
    return f"{item.name}: its {item.picture.width} × {item.picture.height} pixels do not fit into memory; {remedy}"
