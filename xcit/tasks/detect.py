"""Detection and instance segmentation: Mask R-CNN (He et al., arXiv 1703.06870) with the model as its backbone."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ..engine import distributed
from ..engine.task import Losses, Target, Task
from ..evaluation.detection import CocoMetrics, require_coco_eval
from ..models.dense.mask_rcnn import Detections, MaskRCNN
from ..models.dense.pyramid import FeaturePyramid
from ..number_types import PositiveFloat, PositiveInt, Share
from ..preprocessing import Preprocessing

SHORTER_SIDE = 800
"""Shorter side in pixels for which `longest` is given. OPTIONS_FOR in data/views/detection.py must be the same."""


class Detect(Task):
    """Boxes, classes and masks of objects. The heads are Mask R-CNN's; the pyramid is the authors'.

    Args:
        longest: Longest side of an image in pixels, for data.image_size=800; it changes in proportion.
        channels: Width of the heads.
        anchor_scale: Side of an anchor in strides of its map.
        proposals: Largest number of regions in an image that may hold an object.
        score_threshold: Lowest score of a detection.
        nms_threshold: Largest IoU of two detections of one class.
        max_detections: Largest number of detections in an image.
    """

    view = "detection"
    augment = "detection"
    target_kinds = ("boxes",)
    headline = "box_map"
    backbone = "model.model"
    networks: ClassVar = {"model": "model.model"}
    on_validation_line = ("mask_map",)
    in_curves = ("box_map", "mask_map")

    def __init__(
        self,
        model: nn.Module,
        target: Target,
        *,
        longest: Annotated[int, Field(ge=SHORTER_SIDE)] = 1333,
        channels: PositiveInt = 256,
        anchor_scale: PositiveFloat = 8.0,
        proposals: PositiveInt = 1000,
        score_threshold: Share = 0.05,
        nms_threshold: Share = 0.5,
        max_detections: PositiveInt = 100,
    ) -> None:
        pyramid = FeaturePyramid(model)
        super().__init__(pyramid, target)
        self.longest = longest
        self.heads = MaskRCNN(
            pyramid.width,
            len(target.classes),
            channels=channels,
            anchor_scale=anchor_scale,
            proposals=proposals,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            max_detections=max_detections,
        )

    @classmethod
    def num_outputs(cls, target: Target) -> int:
        return 0

    @classmethod
    def check_options(cls, options: Mapping[str, Any], view_options: Mapping[str, Any]) -> None:
        require_coco_eval()

    def preprocessing(self, of_model: Preprocessing) -> Preprocessing:
        size = (SHORTER_SIDE, self.longest)
        return replace(of_model, resize="shortest", size=size, crop_ratio=1.0, interpolation="bilinear")

    def forward(self, batch: Any) -> Losses:
        """The means over the regions of all processes, so that several processes learn what one does."""
        sums = self.heads.losses(self.model(batch.images), batch.sizes, batch.targets, batch.seeds)
        counts = torch.tensor([float(count) for _, count in sums.values()], device=batch.images.device)
        share = distributed.world_size() / distributed.total(counts).clamp(min=1)
        losses = {name: loss * scale for (name, (loss, _)), scale in zip(sums.items(), share, strict=True)}
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def predict(self, image: Tensor, original: tuple[int, int]) -> Detections:
        """The objects in an image, in pixels of the original one. In evaluation mode.

        Args:
            image: (1, 3, h, w), normalized.
            original: (height, width) of the image before it was resized.
        """
        height, width = image.shape[-2:]
        (found,) = self.heads.detect(self.model(image), [(height, width)])
        scale = torch.tensor([original[1] / width, original[0] / height] * 2, device=image.device)
        return found._replace(boxes=found.boxes * scale)

    def evaluator(self) -> CocoMetrics:
        return CocoMetrics(self.predict, self.target.classes)
