"""Classification: cross-entropy, top-1 and top-5."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, SumMetric
from torchmetrics.classification import MulticlassAccuracy


class Classify(nn.Module):
    """The model with the loss of its recipe: cross-entropy against soft targets (mixed and smoothed, or one-hot)."""

    headline = "top1"

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.model, self.num_classes = model, num_classes

    def forward(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.model(batch.images), batch.targets)

    def evaluator(self) -> "Accuracy":
        return Accuracy(self.model, self.num_classes)


class Accuracy:
    """top1 and top5 in percent, loss, images; exact over all processes, whatever the sizes of their shares."""

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        self.model = model
        device = next(model.parameters()).device
        # top_k beyond the number of classes is always right; torchmetrics wants it said with the number itself.
        self.top1, self.top5 = (
            MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro", validate_args=False).to(device)
            for k in (1, 5)
        )
        self.loss, self.images = MeanMetric(nan_strategy="disable").to(device), SumMetric().to(device)
        self.loss.set_dtype(torch.float64)

    def update(self, batch: Any) -> None:
        logits = self.model(batch.images).float()
        losses = F.cross_entropy(logits, batch.targets, reduction="none")
        self.top1.update(logits, batch.labels)
        self.top5.update(logits, batch.labels)
        self.loss.update(losses)
        self.images.update(len(losses))

    def compute(self) -> dict[str, float]:
        return {
            "top1": 100 * self.top1.compute().item(),
            "top5": 100 * self.top5.compute().item(),
            "loss": self.loss.compute().item(),
            "images": int(self.images.compute().item()),
        }
