"""Classification: cross-entropy, top-1 and top-5."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import SumMetric

from ..engine.task import Losses, Target, Task
from ..errors import InputError

Loss = Literal["cross_entropy", "binary_cross_entropy"]


class Classify(Task):
    """One class for each image; targets are soft: mixed and smoothed, or one-hot.

    Args:
        loss: Loss of the labels: cross_entropy, or binary_cross_entropy with augment.label_smoothing=0. The latter
            takes each class by itself; then every class that a mixed image contains is a positive (DeiT III, arXiv
            2204.07118; Wightman et al., arXiv 2110.00476).
    """

    view = "labelled_crop"
    target_kinds = ("class",)
    headline = "top1"

    def __init__(self, model: nn.Module, target: Target, *, loss: Loss = "cross_entropy") -> None:
        super().__init__(model, target)
        self.loss = loss

    @classmethod
    def check_options(cls, options: Mapping[str, Any], view_options: Mapping[str, Any]) -> None:
        if options.get("loss") == "binary_cross_entropy" and view_options.get("label_smoothing"):
            raise InputError(
                f"augment.label_smoothing={view_options['label_smoothing']}: must be 0 with "
                "task.loss=binary_cross_entropy, which takes every class with a share of an image as a positive"
            )

    def forward(self, batch: Any) -> Losses:
        return {"loss": self.classification_loss(self.model(batch.images), batch.targets)}

    def classification_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch; logits and targets are (B, num_classes)."""
        if self.loss == "cross_entropy":
            return F.cross_entropy(logits, targets)
        return F.binary_cross_entropy_with_logits(logits, (targets > 0).to(logits.dtype))

    def evaluator(self) -> "Accuracy":
        return Accuracy(self.model)


class Accuracy:
    """top1 and top5 in percent, loss, images. Exact over all processes, for shares of any size."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        device = next(model.parameters()).device
        self.sums = {name: SumMetric(nan_strategy="disable").to(device) for name in ("top1", "top5", "loss", "images")}
        for total in self.sums.values():
            total.set_dtype(torch.float64)

    def update(self, batch: Any) -> None:
        logits = self.model(batch.images).float()
        ranked = logits.topk(min(5, logits.shape[1])).indices == batch.labels[:, None]
        self.sums["top1"].update(ranked[:, 0].sum())
        self.sums["top5"].update(ranked.sum())
        self.sums["loss"].update(F.cross_entropy(logits, batch.targets, reduction="sum"))
        self.sums["images"].update(len(logits))

    def compute(self) -> dict[str, float]:
        totals = {name: total.compute().item() for name, total in self.sums.items()}
        images = totals["images"]
        return {
            "top1": 100 * totals["top1"] / images,
            "top5": 100 * totals["top5"] / images,
            "loss": totals["loss"] / images,
            "images": int(images),
        }
