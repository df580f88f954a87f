"""Semantic segmentation: a class for each pixel, by Semantic FPN or UperNet on a feature pyramid (paper, table 7)."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..engine import distributed
from ..engine.task import Losses, Target, Task
from ..errors import InputError
from ..evaluation.segmentation import IGNORED, Segmentation
from ..models.dense.conv_block import resized
from ..models.dense.pyramid import STRIDES, FeaturePyramid
from ..models.dense.semantic_fpn import SemanticFPN
from ..models.dense.upernet import FCNHead, UperNet
from ..models.dense.windows import Segmented, at_scales, bands, slide, whole
from ..number_types import NonNegative, PositiveFloat, PositiveInt
from ..preprocessing import Preprocessing

HEADS = {"semantic_fpn": SemanticFPN, "upernet": UperNet}
AUX_WEIGHT = 0.4
SHORTER_SIDE = 512


class Segment(Task):
    """The cross-entropy of each labelled pixel, averaged over the labelled pixels of all processes.

    Args:
        head: What makes classes of the feature maps: semantic_fpn or upernet.
        channels: Channels of the head's convolutions; null: 128 for semantic_fpn, 512 for upernet.
        dropout: Probability that a channel is zeroed before the head's last layer.
        aux_weight: Weight of the auxiliary head's loss, for head=upernet; null: 0.4; 0: no auxiliary head.
        inference: How an image is evaluated: whole, or in windows that slide over it (slide).
        window: Side of the windows in pixels, for inference=slide.
        stride: Pixels from one window to the next, for inference=slide.
        scales: Sizes at which an image is evaluated, relative to its own; the probabilities are averaged.
        flip: Whether an image is evaluated mirrored, too.
        longest: Largest longer side in pixels of an evaluated image whose shorter side is 512. At other image sizes it
            changes in proportion.
    """

    view = "segmentation"
    augment = "segmentation"
    target_kinds = ("mask",)
    headline = "miou"
    backbone = "model.model"
    networks: ClassVar = {"model": "model.model"}
    nondeterministic = "task=segment needs the cross-entropy of images (NLLLoss)"
    on_training_line = ("main", "aux")
    on_validation_line = ("pixel_accuracy", "mean_accuracy")

    def __init__(
        self,
        model: nn.Module,
        target: Target,
        *,
        head: Literal["semantic_fpn", "upernet"] = "semantic_fpn",
        channels: PositiveInt | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        aux_weight: NonNegative | None = None,
        inference: Literal["whole", "slide"] = "whole",
        window: PositiveInt = 512,
        stride: PositiveInt = 341,
        scales: Annotated[list[PositiveFloat], Field(min_length=1)] = [1.0],  # noqa: B006
        flip: bool = False,
        longest: Annotated[int, Field(ge=SHORTER_SIDE)] = 2048,
    ) -> None:
        pyramid = FeaturePyramid(model)
        super().__init__(pyramid, target)
        self.inference, self.window, self.stride = inference, window, stride
        self.scales, self.flip, self.longest = tuple(scales), flip, longest
        num_classes = len(target.classes)
        # The names of the heads are those of the authors' files.
        options = {"channels": channels} if channels else {}  # each head has its own default
        self.decode_head = HEADS[head](pyramid.width, num_classes, dropout=dropout, **options)
        self.aux_weight = 0.0
        if head == "upernet":
            self.aux_weight = AUX_WEIGHT if aux_weight is None else aux_weight
        self.auxiliary_head = FCNHead(pyramid.width, num_classes, dropout=dropout) if self.aux_weight else None

    @classmethod
    def num_outputs(cls, target: Target) -> int:
        return 0

    @classmethod
    def check_options(cls, options: Mapping[str, Any], view_options: Mapping[str, Any]) -> None:
        head, aux_weight = options.get("head"), options.get("aux_weight")
        if head == "semantic_fpn" and aux_weight is not None:
            raise InputError(f"task.aux_weight={aux_weight}: must be null with task.head=semantic_fpn, which has none")
        if options.get("inference") == "slide" and options["stride"] > options["window"]:
            raise InputError(
                f"task.stride={options['stride']}: must be at most task.window={options['window']}, so that the "
                "windows cover the image"
            )

    @classmethod
    def check_pass(cls, options: Mapping[str, Any], images: int, size: int) -> None:
        head = options.get("head")
        if images == 1 and (head == "upernet" or size <= STRIDES[-1]):
            at_size = "" if head == "upernet" else f" at {size} pixels"
            raise InputError(
                f"train.global_batch_size: task.head={head}{at_size} needs at least 2 images in each pass, because a "
                "BatchNorm takes its statistics over one value of each image"
            )

    def preprocessing(self, of_model: Preprocessing) -> Preprocessing:
        size = (SHORTER_SIDE, self.longest)
        return replace(of_model, resize="shortest", size=size, crop_ratio=1.0, interpolation="bilinear")

    # The losses of a batch.

    def forward(self, batch: Any) -> Losses:
        masks = batch.masks
        # DDP averages the gradients of processes, whose shares may have more or fewer labelled pixels.
        labelled = distributed.total((masks != IGNORED).sum()).clamp(min=1)
        share = distributed.world_size() / labelled

        maps = self.model(batch.images)
        main = share * summed_entropy(self.decode_head(maps), STRIDES[0], masks)
        if self.auxiliary_head is None:
            return {"loss": main}
        aux = share * summed_entropy(self.auxiliary_head(maps), FCNHead.stride, masks)
        return {"loss": main + self.aux_weight * aux, "main": main.detach(), "aux": aux.detach()}

    # Inference.

    def evaluator(self) -> Segmentation:
        return Segmentation(self.predict_bands, self.target.classes, next(self.parameters()).device)

    def inference_note(self) -> str:
        windows = f"slide, window {self.window}, stride {self.stride}" if self.inference == "slide" else ""
        scales = f"scales {' '.join(f'{scale:g}' for scale in self.scales)}" if self.scales != (1.0,) else ""
        return ", ".join(filter(None, [windows, scales, "flip" if self.flip else ""]))

    @torch.no_grad()
    def predict(self, image: Tensor, original: tuple[int, int]) -> Tensor:
        """The probabilities of the classes at the original size, (H, W), of an image, (1, C, h, w): (K, H, W).

        They take 4 bytes × K × H × W, which is much for a large image; see `predict_classes`.
        """
        found = image.new_empty(len(self.target.classes), *original, dtype=torch.float32)
        for start, probabilities in self.predict_bands(image, original):
            found[:, start : start + probabilities.shape[1]] = probabilities
        return found

    @torch.no_grad()
    def predict_classes(self, image: Tensor, original: tuple[int, int]) -> Tensor:
        """The most likely class of each pixel at the original size, (H, W), of an image, (1, C, h, w)."""
        return torch.cat([probabilities.argmax(dim=0) for _, probabilities in self.predict_bands(image, original)])

    @torch.no_grad()
    def predict_bands(self, image: Tensor, original: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
        """The same as `predict` in bands from top to bottom: each one's first row, and (K, rows, W)."""

        def segment(image: Tensor, flipped: bool) -> Segmented:
            if self.inference == "whole":
                return whole(self.logits, image, flipped)
            return slide(self.logits, image, self.window, self.stride, flipped)

        return bands(at_scales(segment, image, self.scales, self.flip), original)

    def logits(self, images: Tensor) -> Tensor:
        """The logits at stride 4 of the images padded to multiples of 32 pixels on the right and at the bottom."""
        return self.decode_head(self.model(images))


def summed_entropy(logits: Tensor, stride: int, masks: Tensor) -> Tensor:
    """The sum of the cross-entropy over the labelled pixels.

    logits: at a stride, of the padded images, (B, K, …, …). masks: (B, H, W).
    """
    height, width = masks.shape[-2:]
    padded = (stride * logits.shape[-2], stride * logits.shape[-1])
    enlarged = resized(logits, padded)[..., :height, :width]
    return F.cross_entropy(enlarged, masks, ignore_index=IGNORED, reduction="sum")
