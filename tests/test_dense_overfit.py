"""Detection and segmentation learn small sets by heart, at three image sizes. Slow: make test-slow runs these tests."""

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import launch
from .data.small_ade import write_small_ade
from .data.small_coco import write_small_coco

# The nano backbone from scratch, at a learning rate of 1e-3. The validation images are the training images.
FROM_SCRATCH = (
    "model=xcit_n12_p8",
    "pretrained=null",
    "optim.lr=0.128",
    "optim.warmup_updates=20",
    "train.updates=240",
    "train.global_batch_size=4",
    "train.precision=fp32",
    "data.workers=0",
)
DETECT = (
    "data=coco",
    "data.val_annotations=annotations/instances_train2017.json",
    "data.val_images=train2017",
    "optim.schedule=cosine",
    "optim.milestones=[]",
    "optim.min_lr=1e-6",
    "augment.hflip=0",
    "augment.crop_prob=0",
    "augment.shorter_sides=[800]",
    "task.channels=64",
    "task.proposals=100",
    "task.anchor_scale=4",
)


def result_of(folder: Path, *arguments: str, size: int) -> dict[str, Any]:
    sizes = (f"data.image_size={size}", f"resolutions=[{size}]")
    result = launch("train.py", *FROM_SCRATCH, *arguments, *sizes, "run_dir=run", cwd=folder, timeout=3600)
    assert result.status == 0, result.stderr
    (row,) = json.loads((folder / "run/results.json").read_text())
    return row


@pytest.mark.slow
@pytest.mark.parametrize("size", [96, 128, 160])
def test_detection_overfits(size: int, tmp_path: Path) -> None:
    write_small_coco(tmp_path / "data", images=9)
    row = result_of(tmp_path, *DETECT, f"data.root={tmp_path / 'data'}", size=size)
    print(f"{size} pixels: box mAP {row['box_map']:.1f}, mask mAP {row['mask_map']:.1f}")
    assert row["box_map"] >= 80 and row["mask_map"] >= 70


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 96, 128])
def test_segmentation_overfits(size: int, tmp_path: Path) -> None:
    write_small_ade(tmp_path / "data", images=8, validation=0)
    row = result_of(tmp_path, "data=ade20k", f"data.root={tmp_path / 'data'}", size=size)
    print(f"{size} pixels: mIoU {row['miou']:.1f}")
    assert row["miou"] >= 80
