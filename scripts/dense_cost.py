"""FLOPs of a training image of detection and segmentation, for scripts/reproduce.py."""

import functools
from typing import Any

import torch

from xcit import create_model
from xcit.engine.task import Target
from xcit.evaluation.flops import counted
from xcit.models.dense.mask_rcnn import BOX_SIZE, MASK_SIZE
from xcit.tasks.detect import Detect
from xcit.tasks.segment import Segment

SHARE_OF_800 = (640 / 800, 853 / 800)
"""Height and width of a mean training image of COCO with DETR's multi-scale crops, for data.image_size=800."""
REGIONS, OBJECTS = 512, 128
"""Of an image in training: the regions that are classified, and those of them with a mask."""
CLASSES = {"coco": 80, "ade20k": 150}


@functools.cache
def detection_flops(model: str, size: int, channels: int, /, **options: Any) -> int:
    """Of a forward pass in training, where a multiply-add counts as two. size: data.image_size."""
    with torch.device("meta"):
        target = Target("boxes", ("",) * CLASSES["coco"])
        task = Detect(create_model(model, num_classes=0, **options), target, channels=channels)
        task.eval().requires_grad_(False)
        heads, height_and_width = task.heads, [int(size * share) for share in SHARE_OF_800]

        def run() -> None:
            features = heads.features(task.model(torch.empty(1, 3, *height_and_width)))
            heads.rpn.head(list(features.values()))
            heads.roi_heads.box_head(torch.empty(REGIONS, channels, BOX_SIZE, BOX_SIZE))
            masks = heads.roi_heads.mask_head(torch.empty(OBJECTS, channels, MASK_SIZE // 2, MASK_SIZE // 2))
            heads.roi_heads.mask_predictor(masks)

        return counted(run)


@functools.cache
def segmentation_flops(model: str, size: int, head: str, /, **options: Any) -> int:
    """Of a forward pass in training, where a multiply-add counts as two. size: of the crops in pixels."""
    with torch.device("meta"):
        target = Target("mask", ("",) * CLASSES["ade20k"])
        task = Segment(create_model(model, num_classes=0, **options), target, head=head)  # type: ignore[arg-type]
        task.eval().requires_grad_(False)

        def run() -> None:
            maps = task.model(torch.empty(1, 3, size, size))
            task.decode_head(maps)
            if task.auxiliary_head:
                task.auxiliary_head(maps)

        return counted(run)
