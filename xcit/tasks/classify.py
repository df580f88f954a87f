"""Classification: cross-entropy and its relatives."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..engine.task import Losses, Position, Target, Task
from ..errors import InputError
from ..evaluation.classification import MOST_SCORES, Classification, measures_auroc
from .class_weights import SMALLEST_NORMAL, ClassWeights, require_counts, weights_of

Loss = Literal["cross_entropy", "binary_cross_entropy"]


class Classify(Task):
    """One class for each image; targets are soft: mixed and smoothed, or one-hot.

    The weight of an image and the weights of its classes multiply its loss, and the sum is divided by the number of
    images.

    Args:
        loss: Loss of the labels: cross_entropy, focal, or binary_cross_entropy with augment.label_smoothing=0. The last
            takes each class by itself; then every class that a mixed image contains is a positive (DeiT III, arXiv
            2204.07118; Wightman et al., arXiv 2110.00476). The focal loss of a class with probability p is
            -(1 - p) ** gamma × log p, weighted by its share of the target (Lin et al., arXiv 1708.02002).
        gamma: Exponent of the focal loss, which lowers the loss of easy images; 0: cross-entropy.
        class_weights: Weight of each class in the loss: balanced (1 / its images, mean 1) or a list; null: 1.
    """

    view = "labelled_crop"
    augment = "deit"
    target_kinds = ("class",)
    headline = "top1"
    is_capturable = True

    def __init__(
        self,
        model: nn.Module,
        target: Target,
        *,
        loss: Loss | Literal["focal"] = "cross_entropy",
        gamma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2.0,
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__(model, target)
        self.loss, self.gamma, self.given_weights = loss, gamma, class_weights
        self.weights: Tensor | None
        self.register_buffer("weights", weights_of(class_weights, target), persistent=False)

    @classmethod
    def check_options(cls, options: Mapping[str, Any], view_options: Mapping[str, Any]) -> None:
        if options.get("loss") == "binary_cross_entropy" and view_options.get("label_smoothing"):
            raise InputError(
                f"augment.label_smoothing={view_options['label_smoothing']}: must be 0 with "
                "task.loss=binary_cross_entropy, which takes every class with a share of an image as a positive"
            )

    @classmethod
    def metrics(cls, target: Target, num_images: int) -> tuple[str, ...]:
        every = ("top1", "top5", "loss", "balanced_accuracy", "macro_f1", "auroc")
        return every if measures_auroc(num_images, len(target.classes)) else every[:-1]

    def begin_training(self, device: torch.device) -> None:
        require_counts(self.given_weights, self.target)

    def forward(self, batch: Any) -> Losses:
        return {"loss": self.classification_loss(self.model(batch.images), batch)}

    def classification_loss(self, logits: Tensor, batch: Any) -> Tensor:
        """The sum of the images' losses / their number; logits are (B, num_classes)."""
        # Each loss is linear in a factor of the targets, and a factor of 1 does not change a bit.
        factors = batch.weights[:, None] if self.weights is None else batch.weights[:, None] * self.weights
        if self.loss == "cross_entropy":
            return F.cross_entropy(logits, batch.targets * factors)
        if self.loss == "focal":
            log_p = logits.float().log_softmax(dim=1)
            # The power of 0 would have an infinite gradient with a gamma below 1.
            focal = -((1 - log_p.exp()).clamp(min=SMALLEST_NORMAL) ** self.gamma) * log_p
            return (batch.targets * factors * focal).sum() / len(logits)
        positives = (batch.targets > 0).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, positives, factors)

    def advise(self, measured: Mapping[str, float], position: Position) -> list[str]:
        num_images, num_classes = int(measured.get("images", 0)), len(self.target.classes)
        if position.epoch > 1 or measures_auroc(num_images, num_classes):
            return []
        return [f"auroc is not measured: {num_images:,} images × {num_classes:,} classes are more than {MOST_SCORES:,}"]

    def evaluator(self) -> Classification:
        return Classification(self.model, self.target.classes)
