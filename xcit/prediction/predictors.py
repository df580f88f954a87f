"""What scripts/predict.py makes of an image, for each task: rows of JSON and tables, and a picture."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..encoded_image import EncodedImage
from ..evaluation.detection import categories, corner_and_size, encoded
from ..evaluation.drawing import color_of, draw_objects, draw_segments, with_legend
from ..models.dense.mask_rcnn import Detections, paste
from ..tasks.load import LoadedTask
from .answers import Answer, Head
from .classifier import Classifier, Trained
from .dense import Detector, Segmenter, size_of
from .pictures import as_rgb
from .predictor import Item, Prediction, Predictor, Row

LONGEST_SHOWN = 1024
"""Longer side in pixels of the pictures of classified images. The images of a batch are in memory together."""
LARGEST_TILE = 1024
"""Side of a tile in pixels that is proposed where memory is short."""
MOST_8_BIT = 256
"""Classes that a mask with 8 bits can hold."""


@dataclass(frozen=True)
class Settings:
    """How images are predicted. Sides are in pixels; see `Classifier` and `WholeImages`."""

    device: torch.device
    resolution: int | None
    top: int
    """Number of classes or labels of an image."""
    score: float
    """Lowest score of an object that is drawn and counted."""
    tile: int
    overlap: int


class ClassPredictor:
    """Images → the most likely classes or labels, or numbers."""

    sections: Sequence[str] = ("",)
    fixed: Mapping[str, Any] = {}
    together = True
    counts = "images"

    def __init__(self, loaded: LoadedTask, settings: Settings) -> None:
        head = Head.of_task(loaded.name, loaded.classes, loaded.task.state_dict())
        trained = Trained(loaded.task.model, loaded.preprocessing, head)
        self.classifier = Classifier(trained, device=settings.device, resolution=settings.resolution, top=settings.top)
        self.kind, self.classes = head.kind, loaded.classes
        self.columns: Mapping[str, type] = {
            "class": {"file": str, "rank": int, "class": str, "index": int, "probability": float},
            "classes": {"file": str, "rank": int, "class": str, "index": int, "probability": float, "found": bool},
            "values": {"file": str, "name": str, "index": int, "value": float},
        }[head.kind]
        self.column = "value" if head.kind == "values" else "probability"
        self.named = {"class": "class", "classes": "label", "values": "number"}[head.kind]
        self.counted = "most likely class" if head.kind == "class" else self.named

    def prepare(self, name: str, image: EncodedImage, shown: bool) -> Item:
        preprocessing = self.classifier.preprocessing
        whole = image.picture(preprocessing)
        pixels = image.named(lambda: preprocessing.pixels(whole))
        if not shown:
            return Item(name, None, pixels)
        picture = as_rgb(whole, preprocessing)
        picture.thumbnail((LONGEST_SHOWN, LONGEST_SHOWN))
        return Item(name, picture, pixels)

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        answers = self.classifier.answers([item.pixels for item in items if item.pixels is not None])
        return [self.described(item, answer) for item, answer in zip(items, answers, strict=True)]

    def too_large(self, items: Sequence[Item]) -> str:
        images = items[0].name if len(items) == 1 else f"{items[0].name} and {len(items) - 1} more"
        return f"{images}: do not fit into memory together; a smaller batch_size= takes less"

    def described(self, item: Item, answer: Answer) -> Prediction:
        amounts = answer.values or answer.probabilities
        each = [
            {"name": name, "index": index, self.column: amount}
            for name, index, amount in zip(answer.names, answer.indices, amounts, strict=True)
        ]
        line: Row = {"file": item.name, "values" if self.kind == "values" else "classes": each}
        table = [{"file": item.name, "rank": rank, "class": row["name"], **row} for rank, row in enumerate(each, 1)]
        if self.kind == "classes":
            line["found"] = answer.found
            table = [row | {"found": row["name"] in answer.found} for row in table]
        table = [{column: row[column] for column in self.columns} for row in table]
        text = "{:.4g}" if self.kind == "values" else "{:.3f}"
        found = [(name, text.format(x)) for name, x in zip(answer.names, amounts, strict=True)]
        counted = {"class": answer.names[:1], "classes": answer.found, "values": []}[self.kind]
        shown = found[:1] if self.kind == "class" else found
        if self.kind == "classes":
            # The thresholds of labels differ, so one of 0.47 may be found, and one of 0.51 not.
            limits = [f"{self.classifier.head.threshold(index):.3f}" for index in answer.indices]
            found = [
                (name, f"{amount} > {limit} *" if name in answer.found else f"{amount} ≤ {limit}")
                for (name, amount), limit in zip(found, limits, strict=True)
            ]
            # There may be more labels above their thresholds than were asked for.
            scores = zip(self.classes, self.classifier.head.activate(answer.logits[None])[0].tolist(), strict=True)
            above = sorted(((x, name) for name, x in scores if name in answer.found), reverse=True)
            shown = [(name, text.format(x)) for x, name in above]

        def draw() -> Image.Image:
            assert item.picture is not None
            share = "{:.4g}" if self.kind == "values" else "{:.0%}"
            rows = zip(answer.names, answer.indices, amounts, strict=True)
            return with_legend(item.picture, [(f"{name}: {share.format(x)}", color_of(i)) for name, i, x in rows])

        return Prediction({"": [line]}, line, table, found, shown, dict.fromkeys(counted, 1), draw)


class WholeImagePredictor:
    """What the predictors of whole images share. They predict one at a time."""

    model_class: type[Detector | Segmenter]
    together = False
    named = counted = "class"

    def __init__(self, loaded: LoadedTask, settings: Settings) -> None:
        self.model: Any = self.model_class(
            loaded,
            device=settings.device,
            resolution=settings.resolution,
            tile=settings.tile,
            overlap=settings.overlap,
        )
        self.classes = loaded.classes

    def prepare(self, name: str, image: EncodedImage, shown: bool) -> Item:
        picture = image.rgb()
        return Item(name, picture, self.model.pixels(picture))

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        return [
            self.described(item.name, item.picture, self.model.find(item.picture, item.pixels))
            for item in items
            if item.picture
        ]

    def described(self, name: str, picture: Image.Image, found: Any) -> Prediction:
        raise NotImplementedError

    def too_large(self, items: Sequence[Item]) -> str:
        """The line for an image that memory was too short for, with a tile that takes less."""
        name, picture, *_ = items[0]
        assert picture is not None
        if not self.model.is_tiled(picture):
            smaller = min(LARGEST_TILE, self.model.preprocessing.size[0])
            remedy = f"tile={smaller} without resolution= predicts it in parts"
        else:
            remedy = f"a smaller tile= than {self.model.tile} takes less"
        return f"{name}: its {picture.width} × {picture.height} pixels do not fit into memory; {remedy}"


class ObjectPredictor(WholeImagePredictor):
    """Images → objects, in COCO's format."""

    model_class = Detector

    sections: Sequence[str] = ("images", "annotations")
    columns: Mapping[str, type] = {
        "file": str,
        "class": str,
        "index": int,
        "score": float,
        "left": float,
        "top": float,
        "width": float,
        "height": float,
        "area": int,
    }
    column = counts = "objects"

    def __init__(self, loaded: LoadedTask, settings: Settings) -> None:
        super().__init__(loaded, settings)
        self.score = settings.score
        self.fixed: Mapping[str, Any] = {"categories": categories(self.classes)}
        self.images = self.annotations = 0
        """Counted for their ids in COCO's format, which begin at 1."""

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
        table = [self.table_row(name, row) for row in rows]
        sure = Detections(*(part[found.scores >= self.score] for part in found))
        objects = Counter(self.classes[label] for label in sure.labels.tolist())

        def draw() -> Image.Image:
            masks = (paste(mask, box, size).numpy() for mask, box in zip(sure.masks, sure.boxes, strict=True))
            return draw_objects(
                picture, sure.boxes.numpy(), sure.labels.tolist(), sure.scores.tolist(), masks, self.classes
            )

        found_here = [(label, str(number)) for label, number in objects.most_common()]
        line = {"file": name, "height": size[0], "width": size[1], "objects": rows}
        sections = {"images": [image], "annotations": rows}
        return Prediction(sections, line, table, found_here, found_here, dict(objects), draw)

    def table_row(self, name: str, row: Row) -> Row:
        box = dict(zip(("left", "top", "width", "height"), row["bbox"], strict=True))
        label = row["category_id"]
        first = {"file": name, "class": self.classes[label], "index": label, "score": row["score"]}
        return first | box | {"area": row["area"]}


class SegmentPredictor(WholeImagePredictor):
    """Images → the class of each pixel, and the share of each class."""

    model_class = Segmenter
    sections: Sequence[str] = ("",)
    fixed: Mapping[str, Any] = {}
    columns: Mapping[str, type] = {"file": str, "class": str, "index": int, "share": float}
    column, counts = "share", "images that show it"

    def described(self, name: str, picture: Image.Image, mask: np.ndarray) -> Prediction:
        pixels = np.bincount(mask.ravel(), minlength=len(self.classes))
        order = [int(label) for label in np.argsort(-pixels, kind="stable") if pixels[label]]
        shares = {label: float(pixels[label] / mask.size) for label in order}
        line: Row = {
            "file": name,
            "height": picture.height,
            "width": picture.width,
            "classes": [{"name": self.classes[i], "index": i, "share": share} for i, share in shares.items()],
        }
        table = [{"file": name, "class": self.classes[i], "index": i, "share": share} for i, share in shares.items()]
        found = [(self.classes[i], f"{100 * share:.1f} %") for i, share in shares.items()]
        mask = mask.astype(np.uint8 if len(self.classes) <= MOST_8_BIT else np.uint16)
        counts = {self.classes[label]: 1 for label in order}
        draw = lambda: draw_segments(picture, mask, self.classes)  # noqa: E731
        return Prediction({"": [line]}, line, table, found, found, counts, draw, mask)


PREDICTORS: dict[str, Callable[[LoadedTask, Settings], Predictor]] = {
    "classify": ClassPredictor,
    "distill": ClassPredictor,
    "multilabel": ClassPredictor,
    "regress": ClassPredictor,
    "detect": ObjectPredictor,
    "segment": SegmentPredictor,
}
"""Task → what predicts its images."""
