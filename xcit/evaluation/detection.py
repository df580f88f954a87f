"""COCO's metrics of detection and instance segmentation, by faster-coco-eval, over the images of all processes."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..engine import distributed
from ..engine.task import Details
from ..errors import InputError
from ..models.dense.mask_rcnn import Detections, paste
from .drawing import draw_objects, side_by_side

AREA_NAMES = ("all", "small", "medium", "large")
"""COCO's sizes of objects: small ones are below 32², large ones above 96² pixels."""
THRESHOLDS = {"50": 0.5, "75": 0.75}
"""Suffix of a metric → the IoU from which a detection is right. Without a suffix it is the mean over 0.5 to 0.95."""
KINDS = {"box": "bbox", "mask": "segm"}
MOST_DETECTIONS = 100
"""Of an image, that COCO counts."""
PICTURES, DRAWN_FROM = 8, 0.5
"""The number of pictures, and the lowest score of a detection that is drawn."""


class ImageResult(NamedTuple):
    """The truth and the detections of one image, with masks as RLE."""

    image_id: int
    size: tuple[int, int]
    truth: dict[str, Any]
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: list[dict[str, Any]]


class CocoMetrics:
    """The evaluator. Metrics in percent, for boxes and for masks (mask_map and so on); NaN where there are no objects:

    - box_map: the mean average precision over IoU 0.5 to 0.95 and over the classes;
    - box_map50, box_map75: at one IoU;
    - box_map_small, box_map_medium, box_map_large: of objects below 32², up to 96², and above 96² pixels;
    - images.

    Args:
        predict: (image (1, 3, h, w), (height, width) of the original) → detections in pixels of the original.
        classes: their names.
    """

    def __init__(self, predict: Callable[[Tensor, tuple[int, int]], Detections], classes: Sequence[str]) -> None:
        self.predict, self.classes = predict, classes
        self.results: list[ImageResult] = []
        self.shown: list[tuple[Tensor, tuple[int, int], Mapping[str, Any], Detections]] = []
        """What `drawn` takes, of the first images."""
        self.precision: dict[str, np.ndarray] = {}
        """Kind → COCO's precision: (IoU thresholds, recalls, classes, areas, numbers of detections)."""
        self.objects = np.zeros(len(classes), dtype=int)
        """The number of objects of each class."""

    def update(self, batch: Any) -> None:
        for image, picture, size, truth in zip(
            batch.images, batch.pictures, batch.originals, batch.truths, strict=True
        ):
            found = Detections(*(part.cpu() for part in self.predict(image, size)))
            masks = [encoded(paste(mask, box, size)) for mask, box in zip(found.masks, found.boxes, strict=True)]
            boxes, scores, labels = (part.numpy() for part in (found.boxes, found.scores, found.labels))
            self.results.append(ImageResult(int(truth["image_id"]), size, truth, boxes, scores, labels, masks))
            if distributed.is_main() and len(self.shown) < PICTURES:
                self.shown.append((picture.clone(), size, truth, found))

    def compute(self) -> dict[str, float]:
        results = sorted((r for own in distributed.to_main(self.results) for r in own), key=lambda r: r.image_id)
        self.precision, self.objects, images = distributed.on_main(lambda: measured(results, self.classes))
        metrics: dict[str, float] = {}
        for kind, precision in self.precision.items():
            metrics[f"{kind}_map"] = average(precision)
            metrics |= {f"{kind}_map{suffix}": average(precision, iou=iou) for suffix, iou in THRESHOLDS.items()}
            metrics |= {f"{kind}_map_{area}": average(precision, area=area) for area in AREA_NAMES[1:]}
        return metrics | {"images": images}

    def details(self) -> Details:
        rows = []
        for number, name in enumerate(self.classes):
            row: dict[str, Any] = {"class": name}
            for kind, precision in self.precision.items():
                own = precision[:, :, number : number + 1]
                row |= {f"{kind}_map": average(own), f"{kind}_map50": average(own, iou=0.5)}
            rows.append(row | {"objects": int(self.objects[number])})
        return Details(rows, [drawn(*shown, self.classes) for shown in self.shown])


def require_coco_eval() -> None:
    """Raise an InputError if faster-coco-eval is not installed, which is needed after the first epoch."""
    if find_spec("faster_coco_eval") is None:
        raise InputError("task=detect: needs faster-coco-eval, which is not installed; pip install faster-coco-eval")


def measured(results: Sequence[ImageResult], classes: Sequence[str]) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
    """COCO's precision of each kind, the number of objects of each class without crowds, and that of the images."""
    objects = np.zeros(len(classes), dtype=int)
    for result in results:
        labels = np.asarray(result.truth["labels"])[~np.asarray(result.truth["crowd"], dtype=bool)]
        np.add.at(objects, labels.astype(int), 1)
    return {kind: precision_of(results, classes, kind) for kind in KINDS}, objects, len(results)


def precision_of(results: Sequence[ImageResult], classes: Sequence[str], kind: str) -> np.ndarray:
    """COCO's table of precisions over all images; see `CocoMetrics.precision`."""
    from faster_coco_eval import COCO, COCOeval_faster  # here, since only this task needs it

    truth = COCO(coco_truth(results, classes))
    found = truth.loadRes(coco_detections(results, kind))
    evaluation = COCOeval_faster(truth, found, KINDS[kind], print_function=lambda *_: None)
    evaluation.params.maxDets = [1, 10, MOST_DETECTIONS]
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])


def average(precision: np.ndarray, iou: float | None = None, area: str = "all") -> float:
    """The mean average precision in percent; NaN where no class has an object."""
    if iou is not None:
        precision = precision[[round((iou - 0.5) / 0.05)]]
    of_area = precision[..., list(AREA_NAMES).index(area), -1]
    known = of_area[of_area > -1]
    return 100 * float(known.mean()) if known.size else float("nan")


def coco_truth(results: Sequence[ImageResult], classes: Sequence[str]) -> dict[str, Any]:
    """The objects of all images in COCO's format. Its numbers of annotations start at 1."""
    annotations: list[dict[str, Any]] = []
    for result in results:
        truth = result.truth
        for box, label, crowd, area, mask in zip(
            *(truth[key] for key in ("boxes", "labels", "crowd", "areas", "masks")), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": result.image_id,
                    "category_id": int(label),
                    "bbox": corner_and_size(box),
                    "area": float(area),
                    "iscrowd": int(crowd),
                    "segmentation": mask,
                }
            )
    images = [{"id": r.image_id, "height": r.size[0], "width": r.size[1]} for r in results]
    return {"images": images, "annotations": annotations, "categories": categories(classes)}


def coco_detections(results: Sequence[ImageResult], kind: str) -> list[dict[str, Any]]:
    """The detections of all images in COCO's format, with boxes or with masks: an area is that of what is given."""
    return [
        {
            "image_id": result.image_id,
            "category_id": int(label),
            "score": float(score),
            **({"bbox": corner_and_size(box)} if kind == "box" else {"segmentation": mask}),
        }
        for result in results
        for box, score, label, mask in zip(result.boxes, result.scores, result.labels, result.masks, strict=True)
    ]


def categories(classes: Sequence[str]) -> list[dict[str, Any]]:
    return [{"id": number, "name": name} for number, name in enumerate(classes)]


def corner_and_size(box: Sequence[float]) -> list[float]:
    """Left, top, right, bottom → left, top, width, height."""
    left, top, right, bottom = (float(side) for side in box)
    return [left, top, right - left, bottom - top]


def encoded(mask: Tensor) -> dict[str, Any]:
    """A mask (H, W), bool, as COCO's compressed RLE."""
    from faster_coco_eval.core import mask as rle

    return rle.encode(np.asfortranarray(mask.cpu().numpy(), dtype=np.uint8))


def drawn(
    picture: Tensor, size: tuple[int, int], truth: Mapping[str, Any], found: Detections, classes: Sequence[str]
) -> Image.Image:
    """The picture with the objects as they are, and beside it with those that were found.

    Args:
        picture: (h, w, 3), uint8.
        size: (height, width) in pixels that boxes and masks are for.
    """
    from faster_coco_eval.core import mask as rle

    h, w = picture.shape[:2]
    image, scale = Image.fromarray(picture.cpu().numpy()), np.array([w / size[1], h / size[0]] * 2)
    whole = (Image.fromarray(rle.decode(mask)).resize((w, h), Image.Resampling.NEAREST) for mask in truth["masks"])
    boxes = np.asarray(truth["boxes"]).reshape(-1, 4) * scale
    masks = (np.array(mask, dtype=bool) for mask in whole)
    true = draw_objects(image, boxes, truth["labels"], None, masks, classes, truth["crowd"])
    sure = found.scores >= DRAWN_FROM
    boxes = found.boxes[sure] * torch.as_tensor(scale, dtype=torch.float32)
    masks = (paste(mask, box, (h, w)).numpy() for mask, box in zip(found.masks[sure], boxes, strict=True))
    predicted = draw_objects(
        image, boxes.numpy(), found.labels[sure].tolist(), found.scores[sure].tolist(), masks, classes
    )
    caption = "prediction" if sure.any() else f"prediction: no object with a score of at least {DRAWN_FROM}"
    return side_by_side([("truth", true), (caption, predicted)])
