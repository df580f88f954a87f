"""Several labels for each image: mAP, F1 at the thresholds of the labels, AUROC, and a table of the labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine import distributed
from ..engine.task import Details
from .ranking import auroc, average_precision, best_threshold


class LabelMetrics:
    """Metrics over the known labels of all images and processes, each image counting once:

    - map: the mean average precision of the labels that have a positive, in percent.
    - macro_f1: the mean F1 of these labels at their thresholds, in percent.
    - auroc: the mean area under the ROC curve of the labels that have positives and negatives, in percent.
    - loss: the mean binary cross-entropy of a known label.
    - images.

    It keeps 8 bytes for each image and label.

    Args:
        model: images → logits, (B, K).
        labels: the names of the labels.
        thresholds: the probability of each label above which it counts as found, (K,).
    """

    def __init__(self, model: nn.Module, labels: Sequence[str], thresholds: Tensor) -> None:
        self.model, self.labels, self.thresholds = model, labels, thresholds
        self.rows = [torch.zeros(0, 2 * len(labels), device=thresholds.device)]
        """Logits and truth of each batch, (B, 2 K)."""
        self.gathered: list[tuple[np.ndarray, np.ndarray]] | None = None

    def update(self, batch: Any) -> None:
        self.rows.append(torch.cat([self.model(batch.images).detach().float(), batch.targets], dim=1))

    def of_each_label(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The probabilities, fp64, and the truth of the images for which the label is known."""
        if self.gathered is None:
            whole = self.all_rows = distributed.rows_of_all(torch.cat(self.rows).cpu())
            logits, truth = (part.T.contiguous() for part in whole.chunk(2, dim=1))
            pairs = zip(logits.double().sigmoid().numpy(), truth.numpy(), strict=True)
            self.gathered = [(scores[~np.isnan(own)], own[~np.isnan(own)] > 0.5) for scores, own in pairs]
        return self.gathered

    def best_thresholds(self) -> list[float]:
        """The threshold of each label with the best F1 on these images; 0.5 for one without a positive."""
        return [best_threshold(scores, truth) for scores, truth in self.of_each_label()]

    def compute(self) -> dict[str, float]:
        pairs, thresholds = self.of_each_label(), self.thresholds.tolist()
        self.table = [
            {
                "class": name,
                "average_precision": average_precision(scores, truth),
                **at_threshold(scores > threshold, truth),
                "auroc": auroc(scores, truth),
                "threshold": threshold,
                "positives": int(truth.sum()),
                "known": len(truth),
            }
            for name, (scores, truth), threshold in zip(self.labels, pairs, thresholds, strict=True)
        ]
        logits, truth = self.all_rows.chunk(2, dim=1)
        known = ~truth.isnan()
        return {
            "map": self.mean("average_precision"),
            "macro_f1": self.mean("f1"),
            "auroc": self.mean("auroc"),
            "loss": F.binary_cross_entropy_with_logits(logits[known].double(), truth[known].double()).item(),
            "images": len(truth),
        }

    def mean(self, metric: str) -> float:
        """Over the labels for which it is defined."""
        return torch.tensor([row[metric] for row in self.table], dtype=torch.float64).nanmean().item()

    def details(self) -> Details:
        return Details(self.table, [])


def at_threshold(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 in percent; NaN for F1 without a positive, and for a share of nothing."""
    hits, num_found, num_true = (int(flags.sum()) for flags in (found & truth, found, truth))
    return {
        "precision": 100 * hits / num_found if num_found else float("nan"),
        "recall": 100 * hits / num_true if num_true else float("nan"),
        "f1": 200 * hits / (num_found + num_true) if num_true else float("nan"),
    }
