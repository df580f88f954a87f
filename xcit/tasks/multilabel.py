"""Several labels for each image: binary cross-entropy, or the asymmetric loss."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..engine import distributed
from ..engine.task import Losses, Target, Task
from ..errors import InputError
from ..evaluation.multilabel import LabelMetrics
from .class_weights import SMALLEST_NORMAL, ClassWeights, require_counts, weights_of

SMALLEST = 1e-8
"""Of a probability before its logarithm, as in the authors' code and in timm."""
LARGEST_BELOW_1 = 1 - 2**-24
"""In fp32."""

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Multilabel(Task):
    """Each label of an image is there, is not there, or is unknown, and then counts nowhere.

    The loss is the mean over the known labels of the batch, of all processes; an image's weight multiplies its losses.
    The buffer `thresholds` is part of every checkpoint: the probability of each label above which it counts as found.
    Each validation of a run sets it to the best F1 on the validation images, for raw and EMA weights apart.

    Args:
        loss: Loss of a label: bce (binary cross-entropy) or asymmetric (Ben-Baruch et al., arXiv 2009.14119).
        gamma_neg: Exponent that lowers the loss of easy negatives, for loss=asymmetric.
        gamma_pos: Exponent that lowers the loss of easy positives, for loss=asymmetric.
        clip: Probability that is taken off a negative's, for loss=asymmetric; one below it has no loss.
        class_weights: Weight of each label's positives: balanced (negatives / positives) or a list; null: 1.

    A label that mixup made a share of counts as a positive with this share and as a negative with the rest.
    """

    view = "labelled_crop"
    augment = "three_augment"
    target_kinds = ("classes",)
    headline = "map"
    is_capturable = True
    on_validation_line = ("macro_f1",)

    def __init__(
        self,
        model: nn.Module,
        target: Target,
        *,
        loss: Literal["bce", "asymmetric"] = "bce",
        gamma_neg: NonNegative = 4.0,
        gamma_pos: NonNegative = 1.0,
        clip: Annotated[float, Field(ge=0, lt=1)] = 0.05,
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__(model, target)
        self.loss, self.gamma_neg, self.gamma_pos, self.clip = loss, gamma_neg, gamma_pos, clip
        self.given_weights = class_weights
        self.weights: Tensor | None
        self.register_buffer("weights", weights_of(class_weights, target), persistent=False)
        self.thresholds: Tensor
        self.register_buffer("thresholds", torch.full((len(target.classes),), 0.5))

    @classmethod
    def check_options(cls, options: Mapping[str, Any], view_options: Mapping[str, Any]) -> None:
        if view_options.get("label_smoothing"):
            raise InputError(
                f"augment.label_smoothing={view_options['label_smoothing']}: must be 0 with task=multilabel, which "
                "takes each label by itself"
            )

    @classmethod
    def metrics(cls, target: Target, num_images: int) -> tuple[str, ...]:
        return ("map", "macro_f1", "auroc", "loss")

    def begin_training(self, device: torch.device) -> None:
        require_counts(self.given_weights, self.target)

    def forward(self, batch: Any) -> Losses:
        known = ~batch.targets.isnan()
        losses = self.loss_of_each(self.model(batch.images).float(), batch.targets.nan_to_num())
        # DDP averages the gradients of processes, whose shares may have more or fewer known labels.
        share = distributed.world_size() / distributed.total(known.sum()).clamp(min=1)
        return {"loss": share * (losses * batch.weights[:, None]).where(known, 0.0).sum()}

    def loss_of_each(self, logits: Tensor, truth: Tensor) -> Tensor:
        """The loss of each label, (B, K)."""
        if self.loss == "bce":
            return F.binary_cross_entropy_with_logits(logits, truth, pos_weight=self.weights, reduction="none")
        p = logits.sigmoid()
        not_p = (1 - p + self.clip).clamp(max=1)  # the probability of a negative, shifted by the clip
        # The power of 0 would have an infinite gradient with an exponent below 1.
        miss, false_alarm = ((1 - right).clamp(min=SMALLEST_NORMAL) for right in (p, not_p))
        positive = miss**self.gamma_pos * -p.clamp(min=SMALLEST).log()
        negative = false_alarm**self.gamma_neg * -not_p.clamp(min=SMALLEST).log()
        return truth * positive * (1.0 if self.weights is None else self.weights) + (1 - truth) * negative

    def fit_to_validation(self, evaluator: LabelMetrics) -> None:
        # In fp32 a threshold may round to 1, which no probability is above.
        self.thresholds.copy_(torch.tensor(evaluator.best_thresholds()).clamp(max=LARGEST_BELOW_1))

    def predict(self, images: Tensor) -> Tensor:
        """The probability of each label, (B, K). A label counts as found above its threshold in `thresholds`."""
        return self.model(images).float().sigmoid()

    def evaluator(self) -> LabelMetrics:
        return LabelMetrics(self.model, self.target.classes, self.thresholds)
