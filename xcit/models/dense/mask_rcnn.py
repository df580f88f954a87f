"""Mask R-CNN over the feature pyramid (He et al., arXiv 1703.06870), from torchvision's parts.

The values are those of the authors' detectors. What differs from torchvision's model: the random choice of regions
follows from each image's seed, losses are sums with their counts, boxes have an L1 loss, anchors are not rounded and
must fit their objects, RoIAlign has aligned pixel centers, and under autocast boxes and losses stay in fp32.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from .pyramid import STRIDES
from .regions import RATIOS, AlignedPool, AnchorMatcher, Anchors, SeededSampler, cut_masks, on_image

BOX_CHANNELS = 1024
BOX_SIZE, MASK_SIZE = 7, 28
"""Height and width of the features that a box is classified from, and of a mask."""
MASK_THRESHOLD = 0.5


class Sum(NamedTuple):
    """A loss as a sum over the batch. Divided by the number of summands over all processes it is the mean."""

    total: Tensor
    number: int


Targets = Sequence[Mapping[str, Tensor]]
"""For each image: boxes (N, 4), labels (N,) from 0, masks (N, h, w)."""


class Detections(NamedTuple):
    """The objects found in one image, sorted by score, highest first."""

    boxes: Tensor
    """(N, 4): left, top, right, bottom, in pixels."""
    scores: Tensor
    """(N,), from 0 to 1."""
    labels: Tensor
    """(N,), int64: the class."""
    masks: Tensor
    """(N, 28, 28): the probability of the object within its box; see `paste`."""


class MaskRCNN(nn.Module):
    """The maps of a FeaturePyramid → losses in training, detections in evaluation. `Detect` has the default values.

    Args:
        width: channels of the maps.
        num_classes: without a background.
        channels: of the heads.
        anchor_scale: side of an anchor = anchor_scale · stride, in pixels.
        score_threshold, nms_threshold, max_detections: filters on the detections of an image.
        proposals: the largest number of regions of an image that the box head looks at.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        channels: int,
        anchor_scale: float,
        score_threshold: float,
        nms_threshold: float,
        max_detections: int,
        proposals: int,
    ) -> None:
        super().__init__()
        self.neck = FeaturePyramidNetwork([width] * len(STRIDES), channels, extra_blocks=LastLevelMaxPool())
        anchors = Anchors([*STRIDES, 2 * STRIDES[-1]], anchor_scale)
        self.rpn = Proposals(anchors, AnchorHead(channels, len(RATIOS)), proposals)
        self.roi_heads = Heads(
            box_roi_pool=AlignedPool(BOX_SIZE, STRIDES),
            box_head=TwoMLPHead(channels * BOX_SIZE**2, BOX_CHANNELS),
            box_predictor=FastRCNNPredictor(BOX_CHANNELS, num_classes + 1),
            mask_roi_pool=AlignedPool(MASK_SIZE // 2, STRIDES),
            mask_head=MaskRCNNHeads(channels, (channels,) * 4, dilation=1),
            mask_predictor=MaskRCNNPredictor(channels, channels, num_classes + 1),
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=max_detections,
        )

    def losses(
        self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]], targets: Targets, seeds: Sequence[int]
    ) -> dict[str, Sum]:
        """The losses of a batch.

        Args:
            maps: of the padded images.
            sizes: (height, width) of each image without padding.
            targets: the objects of each image.
            seeds: one for each image; it decides which regions are learnt from.
        """
        with_background: list[dict[str, Any]] = [  # label 0
            {**target, "labels": target["labels"] + 1, "size": size}
            for target, size in zip(targets, sizes, strict=True)
        ]
        self.rpn.fg_bg_sampler.seeds = self.roi_heads.fg_bg_sampler.seeds = seeds
        features = self.features(maps)
        images = ImageList(maps[0], list(sizes))  # only the sizes are read
        proposals, losses = self.rpn(images, features, with_background)
        return {**losses, **self.roi_heads.losses(features, proposals, with_background)}

    def detect(self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """The objects in each image of a batch, in pixels of the images. In evaluation mode."""
        features = self.features(maps)
        proposals, _ = self.rpn(ImageList(maps[0], list(sizes)), features)
        found, _ = self.roi_heads(features, proposals, sizes)
        return [Detections(x["boxes"], x["scores"], x["labels"] - 1, x["masks"][:, 0].float()) for x in found]

    def features(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Five maps of strides 4 to 64, in fp32."""
        found = self.neck(OrderedDict((str(level), x) for level, x in enumerate(maps)))
        return OrderedDict((name, x.float()) for name, x in found.items())


class AnchorHead(RPNHead):
    """torchvision's, with outputs in fp32 under autocast: in half precision, boxes would be off by several pixels."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [of_map.float() for of_map in logits], [of_map.float() for of_map in deltas]


class Proposals(RegionProposalNetwork):
    """The region proposal network: which anchors hold an object, and where its box is."""

    def __init__(self, anchors: nn.Module, head: nn.Module, proposals: int) -> None:
        """proposals: the largest number of regions of an image; twice as many of each map are looked at in training."""
        thresholds, sampled = (0.7, 0.3), (256, 0.5)
        before_nms, after_nms = ({"training": n * proposals, "testing": proposals} for n in (2, 1))
        super().__init__(anchors, head, *thresholds, *sampled, before_nms, after_nms, nms_thresh=0.7)
        self.proposal_matcher = AnchorMatcher(*thresholds, allow_low_quality_matches=True)
        self.fg_bg_sampler = SeededSampler(*sampled, use=0)

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: Targets | None = None
    ) -> tuple[list[Tensor], dict[str, Sum]]:
        boxes, losses = super().forward(images, features, targets)
        names = {"loss_objectness": "rpn_objectness", "loss_rpn_box_reg": "rpn_boxes"}
        return boxes, {names[name]: loss for name, loss in losses.items()}

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """torchvision's, but without the anchors of a batch's padding. Label -1: ignored in the loss."""
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        for of_image, own, target in zip(labels, anchors, targets, strict=True):
            of_image[~on_image(own, target["size"], STRIDES[-1])] = -1
        return labels, boxes

    def compute_loss(
        self, objectness: Tensor, deltas: Tensor, labels: list[Tensor], wanted: list[Tensor]
    ) -> tuple[Sum, Sum]:
        """torchvision's, as sums over the chosen anchors."""
        positive, negative = (torch.cat(chosen) for chosen in self.fg_bg_sampler(labels))
        chosen = (positive | negative).nonzero().flatten()
        objectness, truth = objectness.flatten()[chosen], torch.cat(labels)[chosen]
        found = F.binary_cross_entropy_with_logits(objectness, truth, reduction="sum")
        boxes = F.l1_loss(deltas[positive], torch.cat(wanted)[positive], reduction="sum")
        return Sum(found, len(chosen)), Sum(boxes, len(chosen))


class Heads(RoIHeads):
    """The heads for classes, boxes and masks of the proposed regions."""

    def __init__(self, **parts: Any) -> None:
        """parts: the pools, the heads and the filters of torchvision's RoIHeads."""
        sampled = (512, 0.25)
        super().__init__(
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=sampled[0],
            positive_fraction=sampled[1],
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
            **parts,
        )
        self.fg_bg_sampler = SeededSampler(*sampled, use=1)

    def postprocess_detections(self, logits: Tensor, deltas: Tensor, *rest: Any) -> tuple[list[Tensor], ...]:
        return super().postprocess_detections(logits.float(), deltas.float(), *rest)

    def losses(self, features: dict[str, Tensor], proposals: list[Tensor], targets: Targets) -> dict[str, Sum]:
        """The losses of the chosen regions; the objects themselves are among them."""
        regions, matched, labels, deltas = self.select_training_samples(proposals, targets)
        classes, boxes = self.box_predictor(self.box_head(self.box_roi_pool(features, regions, ())))
        truth = torch.cat(labels)
        positive = (truth > 0).nonzero().flatten()
        boxes = boxes.view(len(truth), -1, 4)[positive, truth[positive]]
        return {
            "classes": Sum(F.cross_entropy(classes.float(), truth, reduction="sum"), len(truth)),
            "boxes": Sum(F.l1_loss(boxes.float(), torch.cat(deltas)[positive], reduction="sum"), len(truth)),
            "masks": self.mask_loss(features, regions, matched, labels, targets),
        }

    def mask_loss(
        self,
        features: dict[str, Tensor],
        regions: Sequence[Tensor],
        matched: Sequence[Tensor],
        labels: Sequence[Tensor],
        targets: Targets,
    ) -> Sum:
        """Of the regions with an object. matched: number of the object of each region."""
        with_object = [of_image > 0 for of_image in labels]
        boxes = [region[chosen] for region, chosen in zip(regions, with_object, strict=True)]
        truth = torch.cat([of_image[chosen] for of_image, chosen in zip(labels, with_object, strict=True)])
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, ()))).float()
        wanted = [
            cut_masks(target["masks"], objects[chosen], box, MASK_SIZE)
            for target, box, objects, chosen in zip(targets, boxes, matched, with_object, strict=True)
            if len(box)
        ]
        if not wanted:
            return Sum(logits.sum(), 0)  # 0, with a gradient of 0 for each parameter
        own = logits[torch.arange(len(truth), device=truth.device), truth]
        loss = F.binary_cross_entropy_with_logits(own, torch.cat(wanted), reduction="none").mean(dim=(1, 2)).sum()
        return Sum(loss, len(truth))


def paste(mask: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """The mask of one detection in pixels, (H, W), bool: the points with a probability of at least 0.5.

    Pixel centers are looked up in the mask with bilinear interpolation, as in the authors' detectors. (torchvision
    rounds the box to whole pixels first.) Only the pixels inside of the box are computed.

    Args:
        mask: probabilities, (h, w), as `Detections` has them: (28, 28).
        box: (4,), in pixels of the image.
        size: (H, W) of the image.
    """
    left, top, right, bottom = box.tolist()
    pasted = torch.zeros(size, dtype=torch.bool, device=mask.device)
    rows, columns = pixels_between(top, bottom, size[0]), pixels_between(left, right, size[1])
    if len(rows) and len(columns):
        by_row = interpolation(rows, top, bottom, mask.shape[0]).to(mask.device)
        by_column = interpolation(columns, left, right, mask.shape[1]).to(mask.device)
        with torch.autocast(mask.device.type, enabled=False):
            found = by_row @ mask.float() @ by_column.T
        pasted[rows.start : rows.stop, columns.start : columns.stop] = found >= MASK_THRESHOLD
    return pasted


def pixels_between(start: float, stop: float, limit: int) -> range:
    """The pixels that touch an interval, within an image."""
    return range(max(0, int(start)), min(limit, -int(-stop // 1)))


def interpolation(pixels: range, start: float, stop: float, cells: int) -> Tensor:
    """The weight of each cell of a mask in each pixel, (pixels, cells), where the cells share an interval."""
    centers = torch.arange(pixels.start, pixels.stop) + 0.5
    positions = (centers - start) * (cells / max(stop - start, 1e-6)) - 0.5
    return (1 - (positions[:, None] - torch.arange(cells)).abs()).clamp_min(0)
