"""Regression: one or several numbers for each image."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine import distributed
from ..engine.task import Losses, Target, Task
from ..errors import InputError
from ..evaluation.regression import ValueMetrics

LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}


class Regress(Task):
    """The model's outputs are standardised values: less the mean of the training images, divided by their deviation.

    The loss is the mean over the known values of the batch, of all processes; an image's weight multiplies its losses.
    The buffers `mean` and `std` are part of every checkpoint, and `predict` undoes the standardisation.

    Args:
        loss: Loss of a standardised value: mse, l1 or smooth_l1 (squared below an error of 1, then linear).
    """

    view = "labelled_crop"
    augment = "three_augment"
    target_kinds = ("values",)
    headline = "r2"
    is_capturable = True
    on_validation_line = ("mae", "rmse")

    def __init__(
        self, model: nn.Module, target: Target, *, loss: Literal["mse", "l1", "smooth_l1"] = "smooth_l1"
    ) -> None:
        super().__init__(model, target)
        self.loss = loss
        unknown = (float("nan"),) * len(target.classes)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(target.mean or unknown, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(target.std or unknown, dtype=torch.float32))

    @classmethod
    def check_options(cls, options: Mapping[str, Any], view_options: Mapping[str, Any]) -> None:
        if view_options.get("label_smoothing"):
            raise InputError(
                f"augment.label_smoothing={view_options['label_smoothing']}: must be 0 with task=regress, whose "
                "targets are numbers"
            )

    @classmethod
    def metrics(cls, target: Target, num_images: int) -> tuple[str, ...]:
        return ("r2", "mae", "rmse", "loss")

    def forward(self, batch: Any) -> Losses:
        truth = (batch.targets - self.mean) / self.std
        known = ~truth.isnan()
        losses = self.loss_of_each(self.model(batch.images).float(), truth.nan_to_num())
        # DDP averages the gradients of processes, whose shares may have more or fewer known values.
        share = distributed.world_size() / distributed.total(known.sum()).clamp(min=1)
        return {"loss": share * (losses * batch.weights[:, None]).where(known, 0.0).sum()}

    def loss_of_each(self, found: Tensor, truth: Tensor) -> Tensor:
        """The loss of each standardised value, (B, K)."""
        return LOSSES[self.loss](found, truth, reduction="none")

    def predict(self, images: Tensor) -> Tensor:
        """The values of images, (B, K), in their own units."""
        return self.model(images).float() * self.std + self.mean

    def evaluator(self) -> ValueMetrics:
        return ValueMetrics(self.model, self.loss_of_each, self.target.classes, self.mean, self.std)
