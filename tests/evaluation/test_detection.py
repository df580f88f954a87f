"""COCO's metrics: pycocotools' numbers, whatever the number of processes; the table of classes and the pictures."""

import io
import math
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from xcit.evaluation import detection
from xcit.evaluation.detection import DRAWN_FROM, CocoMetrics
from xcit.evaluation.drawing import font_for, text_size
from xcit.models.dense.mask_rcnn import Detections, paste

from ..conftest import in_two_processes

CLASSES = ("cat", "dog", "never seen", "bird")
SIZE = (150, 200)
NAMES = ["map", "map50", "map75", "map_small", "map_medium", "map_large"]
IMAGES = 12


def rle(mask: np.ndarray) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def ellipse(box: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    center, sides = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    return ((x - center[0]) / sides[0]) ** 2 + ((y - center[1]) / sides[1]) ** 2 <= 0.25


def random_boxes(random: np.random.Generator, number: int) -> np.ndarray:
    """Small, medium and large ones."""
    sides = random.choice([14, 50, 120], size=(number, 1)) * random.uniform(0.9, 1.2, size=(number, 2))
    corners = random.uniform(0, 1, size=(number, 2)) * (np.array(SIZE[::-1]) - sides)
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


def truth_of(number: int) -> dict[str, Any]:
    """Some objects, a third of them crowds; every fifth image has none."""
    random = np.random.default_rng(number)
    boxes = random_boxes(random, 0 if number % 5 == 4 else 6)
    masks = [rle(ellipse(box)) for box in boxes]
    return {
        "boxes": torch.from_numpy(boxes),
        "labels": torch.from_numpy(random.choice([0, 1, 3], size=len(boxes))),
        "crowd": random.uniform(size=len(boxes)) < 0.3,
        "areas": np.array([coco_mask.area(mask) for mask in masks], np.float32) * 0.9,
        "masks": masks,
        "image_id": 1000 - 7 * number,
    }


def found_in(number: int) -> Detections:
    """Objects that were moved a little, doubles, other classes, and detections of nothing. Many scores are equal."""
    random = np.random.default_rng(100 + number)
    truth = truth_of(number)
    boxes = np.concatenate([truth["boxes"].numpy()] * 2 + [random_boxes(random, 5)])
    boxes = boxes + random.normal(0, 2, size=boxes.shape).astype(np.float32)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 2)
    labels = np.concatenate([truth["labels"].numpy()] * 2 + [random.choice([0, 1, 3], size=5)])
    labels = np.where(random.uniform(size=len(labels)) < 0.15, 3 - labels, labels)
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    radii = torch.from_numpy(random.uniform(11, 16, size=(len(boxes), 1, 1))).float()
    masks = torch.sigmoid(radii - ((x - 13.5) ** 2 + (y - 13.5) ** 2).sqrt())
    scores = torch.from_numpy(random.uniform(0.1, 1, size=len(boxes)).round(1)).float()
    order = scores.sort(descending=True, stable=True).indices
    every = Detections(torch.from_numpy(boxes), scores, torch.from_numpy(labels), masks)
    rows = order[:0] if number == 3 else order
    return Detections(*(values[rows] for values in every))


def predict(image: Tensor, original: tuple[int, int]) -> Detections:
    assert original == SIZE
    return found_in(int(image[0, 0, 0, 0]))


def batch_of(*numbers: int) -> SimpleNamespace:
    return SimpleNamespace(
        images=[torch.full((1, 3, 75, 100), float(number)) for number in numbers],
        pictures=[torch.zeros(75, 100, 3, dtype=torch.uint8) for _ in numbers],
        originals=[SIZE] * len(numbers),
        truths=[truth_of(number) for number in numbers],
    )


def measured(*batches: tuple[int, ...]) -> tuple[dict[str, float], CocoMetrics]:
    metrics = CocoMetrics(predict, CLASSES)
    for numbers in batches:
        metrics.update(batch_of(*numbers))
    return metrics.compute(), metrics


def oracle(iou_type: str, images: range, label: int | None = None) -> list[float]:
    """pycocotools' six numbers in percent, of one class or of all."""
    numbers = sorted(images, key=lambda number: truth_of(number)["image_id"])
    annotations, results = [], []
    for number in numbers:
        truth, found = truth_of(number), found_in(number)
        for row, (box, kind) in enumerate(zip(truth["boxes"].double().numpy(), truth["labels"].tolist(), strict=True)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": truth["image_id"],
                    "category_id": kind + 1,
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "area": float(truth["areas"][row]),
                    "iscrowd": int(truth["crowd"][row]),
                    "segmentation": truth["masks"][row],
                }
            )
        for box, score, kind, mask in zip(*found, strict=True):
            left, top, right, bottom = box.double().tolist()
            shape = {"bbox": [left, top, right - left, bottom - top]}
            if iou_type == "segm":
                shape = {"segmentation": rle(paste(mask, box, SIZE).numpy())}
            results.append(shape | {"image_id": truth["image_id"], "category_id": int(kind) + 1, "score": float(score)})
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": truth_of(n)["image_id"], "height": SIZE[0], "width": SIZE[1]} for n in numbers],
        "annotations": annotations,
        "categories": [{"id": n + 1, "name": name} for n, name in enumerate(CLASSES)],
    }
    with redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), iou_type)
        if label is not None:
            evaluation.params.catIds = [label + 1]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * value if value >= 0 else math.nan for value in evaluation.stats[:6]]


def test_all_numbers_are_pycocotools() -> None:
    metrics, _ = measured(tuple(range(5)), tuple(range(5, IMAGES)))
    for kind, iou_type in (("box", "bbox"), ("mask", "segm")):
        expected = oracle(iou_type, range(IMAGES))
        assert all(0 < value < 100 for value in expected), "each number tells something"
        assert len(set(expected)) == 6
        for name, value in zip(NAMES, expected, strict=True):
            assert metrics[f"{kind}_{name}"] == pytest.approx(value, abs=1e-6), f"{kind}_{name}"
    assert metrics["images"] == IMAGES
    assert len(metrics) == 13


def test_the_table_has_the_numbers_of_each_class() -> None:
    _, evaluator = measured(tuple(range(IMAGES)))
    rows = evaluator.details().per_class
    assert [row["class"] for row in rows] == list(CLASSES)
    for label, row in enumerate(rows):
        for kind, iou_type in (("box", "bbox"), ("mask", "segm")):
            expected = oracle(iou_type, range(IMAGES), label)
            found = [row[f"{kind}_map"], row[f"{kind}_map50"]]
            assert found == pytest.approx(expected[:2], abs=1e-6, nan_ok=True)
    truths = [truth_of(number) for number in range(IMAGES)]
    counts = np.bincount(np.concatenate([t["labels"][~t["crowd"]] for t in truths]), minlength=4)
    assert [row["objects"] for row in rows] == counts.tolist()
    assert math.isnan(rows[2]["mask_map"])


@pytest.mark.parametrize("numbers", [(4,), (3,), (3, 4)], ids=["no objects", "no detections", "both"])
def test_images_without_objects_or_detections(numbers: tuple[int, ...]) -> None:
    """-1 never comes out: without objects a metric is not defined, and without detections it is 0."""
    metrics, _ = measured(numbers)
    values = [value for name, value in metrics.items() if name != "images"]
    if 3 in numbers:
        assert {value for value in values if not math.isnan(value)} == {0.0}
        assert metrics["box_map"] == metrics["mask_map50"] == 0
    else:
        assert all(map(math.isnan, values))
    assert metrics["images"] == len(numbers)


def share(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    metrics, evaluator = measured(*[(number,) for number in range(rank, IMAGES, 2)])
    torch.save((metrics, evaluator.details().per_class, len(evaluator.shown)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    """Exactly, and detections with equal scores do not change that."""
    in_two_processes(share, tmp_path)
    metrics, evaluator = measured(tuple(reversed(range(IMAGES))))
    for rank, pictures in ((0, 6), (1, 0)):
        found, rows, shown = torch.load(tmp_path / f"{rank}.pt")
        assert found == metrics
        assert str(rows) == str(evaluator.details().per_class)
        assert shown == pictures


def test_pictures_show_the_truth_beside_the_detections(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Any, ...]] = []

    def draw_objects(
        picture: Any, boxes: Any, labels: Any, scores: Any, masks: Any, classes: Any, crowd: Any = None
    ) -> Image.Image:
        drawn.append((boxes, labels, scores, list(masks), classes, crowd))
        return Image.new("RGB", picture.size, "red" if scores is None else "blue")

    monkeypatch.setattr(detection, "draw_objects", draw_objects)
    _, evaluator = measured(tuple(range(IMAGES)))
    pictures = evaluator.details().pictures
    assert len(pictures) == 8
    font = font_for(pictures[0])
    top = text_size(font, "")[1]
    assert pictures[0].size == (200, top + 75), "captions above the pictures"
    assert pictures[0].getpixel((99, 20)) == (255, 0, 0) and pictures[0].getpixel((100, 20)) == (0, 0, 255)
    assert pictures[3].width == 100 + text_size(font, "prediction: no object with a score of at least 0.5")[0]
    (boxes, labels, scores, masks, classes, crowd), found = drawn[0], drawn[1]
    truth = truth_of(0)
    np.testing.assert_allclose(boxes, truth["boxes"].numpy() / 2)
    assert labels.tolist() == truth["labels"].tolist() and scores is None and classes == CLASSES
    assert crowd.tolist() == truth["crowd"].tolist() and crowd.any()
    assert [mask.shape for mask in masks] == [(75, 100)] * 6 and masks[0].dtype == bool
    assert masks[0].sum() == pytest.approx(ellipse(truth["boxes"][0].numpy()).sum() / 4, rel=0.2)
    assert min(found[2]) >= DRAWN_FROM > found_in(0).scores.min()
    assert len(found[0]) == len(found[1]) == len(found[3]) == (found_in(0).scores >= DRAWN_FROM).sum()
