"""Detection as a task: its losses over processes, detections in pixels of the original image, and a short training."""

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from torch import Tensor, nn

import xcit
from xcit.engine import distributed
from xcit.engine.task import DetailedEvaluator, Target
from xcit.models.dense.mask_rcnn import paste
from xcit.preprocessing import Preprocessing
from xcit.tasks.detect import Detect

SMALL = {"channels": 32, "anchor_scale": 4.0, "proposals": 50}
SIDE = 96
STEPS = 130
SHAPES = ("rectangle", "ellipse")


def task(**options: Any) -> Detect:
    torch.manual_seed(0)
    model = xcit.create_model("xcit_n12", patch_size=8, depth=3, num_classes=0)
    return Detect(model, Target("boxes", SHAPES), **SMALL | options)


def mask_of(label: int, box: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    left, top, right, bottom = box
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    if label == 0:
        return (x > left) & (x < right) & (y > top) & (y < bottom)
    center, sides = ((left + right) / 2, (top + bottom) / 2), (right - left, bottom - top)
    return ((x - center[0]) / sides[0]) ** 2 + ((y - center[1]) / sides[1]) ** 2 <= 0.25


SCENES = [
    [(0, (8, 10, 48, 40)), (1, (50, 44, 90, 88))],
    [(1, (12, 40, 62, 84)), (0, (56, 6, 88, 40))],
    [(0, (20, 20, 76, 80))],
]


def images() -> Tensor:
    """Gray noise with a bright rectangle or a dark ellipse."""
    pixels = torch.randn(len(SCENES), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.1
    for image, scene in zip(pixels, SCENES, strict=True):
        for label, box in scene:
            image[:, torch.from_numpy(mask_of(label, box, (SIDE, SIDE)))] += 2.0 if label == 0 else -2.0
    return pixels


def training_batch(*rows: int) -> SimpleNamespace:
    scenes = [SCENES[row] if row < len(SCENES) else [] for row in rows]
    targets = [
        {
            "boxes": torch.tensor([box for _, box in scene]).float().reshape(-1, 4),
            "labels": torch.tensor([label for label, _ in scene]).long(),
            "masks": torch.from_numpy(
                np.stack([mask_of(label, box, (SIDE, SIDE)) for label, box in scene] or [np.zeros((SIDE, SIDE))])
            ).byte()[: len(scene)],
        }
        for scene in scenes
    ]
    pixels = torch.cat([images(), torch.zeros(1, 3, SIDE, SIDE)])[list(rows)]
    return SimpleNamespace(images=pixels, sizes=[(SIDE, SIDE)] * len(rows), targets=targets, seeds=list(rows))


def evaluation_batch(scale: int = 2) -> SimpleNamespace:
    """The original images are larger than what the model sees."""
    size = (scale * SIDE, scale * SIDE)
    truths = []
    for number, scene in enumerate(SCENES):
        boxes = np.array([box for _, box in scene], np.float32) * scale
        masks = [mask_of(label, box, size) for (label, _), box in zip(scene, boxes, strict=True)]
        truths.append(
            {
                "boxes": torch.from_numpy(boxes),
                "labels": torch.tensor([label for label, _ in scene]),
                "crowd": torch.zeros(len(scene), dtype=torch.bool),
                "areas": torch.tensor([float(mask.sum()) for mask in masks]),
                "masks": [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks],
                "image_id": number,
            }
        )
    return SimpleNamespace(
        images=list(images().split(1)),
        pictures=[torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8) for _ in SCENES],
        originals=[size] * len(SCENES),
        truths=truths,
    )


def test_a_short_training_finds_the_objects() -> None:
    detect = task()
    optimizer = torch.optim.AdamW(detect.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS, pct_start=0.1)
    detect.train()
    for step in range(STEPS):
        batch = training_batch(0, 1, 2)
        batch.seeds = [3 * step, 3 * step + 1, 3 * step + 2]
        detect(batch)["loss"].backward()
        nn.utils.clip_grad_norm_(detect.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    detect.eval()
    evaluator = detect.evaluator()
    assert isinstance(evaluator, DetailedEvaluator)
    with torch.inference_mode():
        evaluator.update(evaluation_batch())
    metrics = evaluator.compute()
    assert metrics["box_map"] >= 80
    assert metrics["mask_map"] >= 70
    with torch.inference_mode():
        found = detect.predict(images()[:1], (2 * SIDE, 2 * SIDE))
    best = paste(found.masks[0], found.boxes[0], (2 * SIDE, 2 * SIDE))
    expected = mask_of(int(found.labels[0]), 2 * np.array(SCENES[0][int(found.labels[0])][1]), (2 * SIDE, 2 * SIDE))
    assert (best.numpy() & expected).sum() / (best.numpy() | expected).sum() > 0.8


def test_the_named_losses_add_up() -> None:
    losses = task()(training_batch(0, 1))
    assert list(losses) == ["loss", "rpn_objectness", "rpn_boxes", "classes", "boxes", "masks"]
    parts = [loss for name, loss in losses.items() if name != "loss"]
    torch.testing.assert_close(losses["loss"], torch.stack(parts).sum())
    assert set(Detect.on_training_line) < set(losses)


def test_a_batch_without_objects_gives_every_parameter_a_gradient() -> None:
    detect = task().train()
    losses = detect(training_batch(3, 3))
    assert losses["boxes"] == losses["masks"] == losses["rpn_boxes"] == 0 and losses["classes"] > 0
    losses["loss"].backward()
    assert [name for name, p in detect.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_detections_are_in_pixels_of_the_original_image() -> None:
    detect = task(score_threshold=0.0, max_detections=9).eval()
    with torch.inference_mode():
        same = detect.predict(images()[:1], (SIDE, SIDE))
        other = detect.predict(images()[:1], (3 * SIDE, SIDE // 2))
    assert len(same.boxes) == 9 and same.boxes.max() <= SIDE
    torch.testing.assert_close(other.boxes, same.boxes * torch.tensor([0.5, 3, 0.5, 3]))
    assert torch.equal(other.masks, same.masks) and torch.equal(other.scores, same.scores)


def test_images_are_resized_by_their_shorter_side() -> None:
    found = task(longest=1200).preprocessing(Preprocessing(crop_ratio=0.9))
    assert (found.resize, found.size, found.crop_ratio) == ("shortest", (800, 1200), 1.0)
    assert found.at(96).size == (96, 144)


def test_others_load_the_backbone() -> None:
    detect = task()
    assert detect.get_submodule(detect.backbone) is detect.model.model
    assert Detect.num_outputs(Target("boxes", SHAPES)) == 0


# Several processes.


def gradients(detect: Detect) -> list[Tensor]:
    found = [p.grad for p in detect.parameters() if p.grad is not None]
    assert len(found) == len(list(detect.parameters()))
    return found


def test_two_processes_have_the_gradients_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """DistributedDataParallel takes the mean of the processes' gradients. Their numbers of samples differ, and the
    second has no object at all. BatchNorm is left out here: its statistics are synchronized elsewhere."""
    whole = task()
    for part in whole.modules():
        part.train(not isinstance(part, nn.BatchNorm2d))
    copies = [copy.deepcopy(whole) for _ in range(2)]
    expected = whole(training_batch(0, 1, 2, 3))
    expected["loss"].backward()

    shares = [training_batch(0, 1), training_batch(2, 3)]
    counts = []
    monkeypatch.setattr(distributed, "total", lambda own: counts.append(own) or own)
    for detect, share in zip(copies, shares, strict=True):
        detect(share)
    assert not torch.equal(*counts)
    monkeypatch.setattr(distributed, "total", lambda own: counts[0] + counts[1])
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    losses = [detect(share) for detect, share in zip(copies, shares, strict=True)]
    for loss in losses:
        loss["loss"].backward()
    for name, value in expected.items():
        torch.testing.assert_close((losses[0][name] + losses[1][name]) / 2, value, rtol=1e-4, atol=1e-5)
    for a, b, c in zip(gradients(whole), *map(gradients, copies), strict=True):
        torch.testing.assert_close((b + c) / 2, a, rtol=1e-3, atol=1e-4)
