"""Classification: accuracies and F1 over all images, AUROC where it is affordable, and a table of the classes."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..device import device_for_float64, in_float64
from ..engine import distributed
from ..engine.task import Details
from .ranking import auroc

MOST_SCORES = 10_000_000
"""Largest images × classes for which AUROC is measured: it needs every probability of every image, sorted."""
MOST_CLASSES = 1_000
"""Largest number of classes for which the details have a confusion matrix."""


def measures_auroc(num_images: int, num_classes: int) -> bool:
    return num_images * num_classes <= MOST_SCORES


class Classification:
    """Metrics over all images and processes, each image counting once, whatever its weight in training:

    - top1, top5: the share of images whose class is the most likely one, or among the five most likely, in percent.
    - loss: the mean cross-entropy.
    - balanced_accuracy: the mean over the classes of their share of found images, in percent.
    - macro_f1: the mean F1 of the classes, in percent.
    - auroc: the mean over the classes of the area under the ROC curve of one class against the rest, in percent. It is
      left out above MOST_SCORES.
    - images.

    The means are over the classes that occur: in the truth for balanced_accuracy, in the truth or a prediction for
    macro_f1, and in some but not all images for auroc.
    """

    def __init__(self, model: nn.Module, classes: Sequence[str]) -> None:
        self.model, self.classes = model, classes
        device = next(model.parameters()).device
        self.sums = torch.zeros(3, dtype=torch.float64, device=device_for_float64(device))
        """Images whose class is the most likely, or among the five most likely, and the loss, of this process."""
        none = torch.zeros(0, dtype=torch.long, device=device)
        self.labels, self.predicted = [none], [none]
        self.scores: list[Tensor] = [torch.zeros(0, len(classes), device=device)]
        self.kept = 0
        """Images of this process whose scores are kept."""
        self.by_class: dict[str, Tensor] = {}
        """The metrics of each class, (K,), in percent; `compute` fills it."""
        self.true = torch.zeros(len(classes), dtype=torch.float64, device=self.sums.device)
        """The images of each class in all processes, (K,); `compute` counts them."""

    def update(self, batch: Any) -> None:
        logits = self.model(batch.images).detach().float()
        classes = logits.topk(min(5, logits.shape[1])).indices
        ranked = classes == batch.labels[:, None]
        loss = F.cross_entropy(logits, batch.targets, reduction="sum")
        self.sums += in_float64(torch.stack([ranked[:, 0].sum(), ranked.sum(), loss]))
        self.labels.append(batch.labels)
        self.predicted.append(classes[:, 0])
        self.kept += len(logits)
        if measures_auroc(self.kept, len(self.classes)):
            self.scores.append(logits.softmax(dim=1))
        else:
            del self.scores[1:]

    def compute(self) -> dict[str, float]:
        true, predicted, right = (in_float64(distributed.total(counts)) for counts in self.counts())
        images = int(true.sum())
        top1, top5, loss = distributed.total(self.sums).tolist()
        recall, precision, f1 = (100 * right / n for n in (true, predicted, (true + predicted) / 2))
        self.by_class = {"accuracy": recall, "precision": precision, "f1": f1}
        self.true = true
        measured = {
            "top1": 100 * top1 / images,
            "top5": 100 * top5 / images,
            "loss": loss / images,
            "balanced_accuracy": recall.nanmean().item(),
            "macro_f1": f1.nanmean().item(),
        }
        if measures_auroc(images, len(self.classes)):
            self.by_class["auroc"] = self.auroc_of_classes()
            measured["auroc"] = self.by_class["auroc"].nanmean().item()
        return measured | {"images": images}

    def counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """This process's images by true class, by predicted class, and those whose class is found, all (K,)."""
        labels, predicted = torch.cat(self.labels), torch.cat(self.predicted)
        groups = (labels, predicted, labels[labels == predicted])
        true, found, right = (torch.bincount(group, minlength=len(self.classes)) for group in groups)
        return true, found, right

    def auroc_of_classes(self) -> Tensor:
        """In percent, (K,); NaN for a class of no or of all images."""
        scores = distributed.rows_of_all(torch.cat(self.scores).cpu()).T.contiguous().numpy()
        labels = distributed.rows_of_all(torch.cat(self.labels).cpu()).numpy()
        areas = [auroc(of_class, labels == number) for number, of_class in enumerate(scores)]
        return torch.tensor(areas, dtype=torch.float64)

    def details(self) -> Details:
        columns = {name: column.tolist() for name, column in self.by_class.items()}
        columns["images"] = self.true.long().tolist()
        rows = zip(self.classes, *columns.values(), strict=True)
        per_class = [{"class": name, **dict(zip(columns, row, strict=True))} for name, *row in rows]
        return Details(per_class, [], self.confusion())

    def confusion(self) -> dict[str, list[dict[str, Any]]]:
        """Images by true class (row) and predicted class (column), as the table "confusion"."""
        num_classes = len(self.classes)
        if num_classes > MOST_CLASSES:
            return {}
        pairs = num_classes * torch.cat(self.labels) + torch.cat(self.predicted)
        counts = distributed.total(torch.bincount(pairs, minlength=num_classes**2)).view(num_classes, num_classes)
        rows = zip(self.classes, counts.tolist(), strict=True)
        named = [{r"true \ predicted": name, **dict(zip(self.classes, row, strict=True))} for name, row in rows]
        return {"confusion": named}
