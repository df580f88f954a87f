"""What a validation of DINO measures, and when it warns of a collapse."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import distributed
from ..engine.task import Position
from ..evaluation.collapse import entropy, feature_std, rankme
from ..evaluation.knn import leave_one_out_knn

NEIGHBORS = 20
SETTLED = 0.1
"""The share of the run after which a collapse is reported: at the start all outputs are alike."""
FEWEST_IMAGES = 64
"""Of a validation, to tell a collapse from chance."""
LEAST_INFORMATION = 0.02
"""The least information of an output about its image, as a share of the largest possible."""
LEAST_RANK, LEAST_STD = 2.0, 0.1
"""The least effective rank and the least standard deviation of features that are not collapsed."""


class FrozenFeatures:
    """The evaluator. Metrics, over the images of all processes:

    - knn_val_top1: k-NN accuracy in percent, k = 20, of each validation image among all other ones; only if the data
      have classes.
    - rankme, feature_std: the effective rank and the spread of the features.
    - teacher_entropy, batch_entropy: the mean entropy of the teacher's outputs, and the entropy of their mean, in nats;
      only with prototypes.
    - images.

    Args:
        backbone: images → features, (B, C).
        outputs: features → the teacher's probabilities, (B, K), or None.
    """

    def __init__(self, backbone: nn.Module, outputs: Callable[[Tensor], Tensor] | None) -> None:
        self.backbone, self.outputs = backbone, outputs
        self.device = next(backbone.parameters()).device
        self.rows: dict[str, list[Tensor]] = {}
        """Of each batch: features, (B, D), and perhaps labels and entropies, (B,)."""
        self.sum: Tensor | float = 0.0

    def update(self, batch: Any) -> None:
        features = self.backbone(batch.images)
        found = {"features": features.float()}
        if batch.labels is not None:
            found["labels"] = batch.labels
        if self.outputs is not None:
            probabilities = self.outputs(features)
            found["entropies"] = entropy(probabilities)
            self.sum = self.sum + probabilities.sum(dim=0)
        for name, rows in found.items():
            self.rows.setdefault(name, []).append(rows.cpu())

    def compute(self) -> dict[str, float]:
        # The main process says what there is: another one may have no images.
        dtypes = distributed.from_main({name: parts[0].dtype for name, parts in self.rows.items()})
        own = {name: torch.cat(self.rows.get(name) or [torch.empty(0, dtype=dtype)]) for name, dtype in dtypes.items()}
        rows = {name: distributed.rows_of_all(part).to(self.device) for name, part in own.items()}
        features = rows["features"]
        measured = {"rankme": rankme(features).item(), "feature_std": feature_std(features).item()}
        if "labels" in rows:
            measured = {"knn_val_top1": leave_one_out_knn(features, rows["labels"], NEIGHBORS)} | measured
        if "entropies" in rows:
            total = torch.as_tensor(sum(distributed.from_all(self.sum)))
            measured["teacher_entropy"] = rows["entropies"].mean().item()
            measured["batch_entropy"] = entropy(total / len(features)).item()
        return measured | {"images": len(features)}


def signs_of_collapse(measured: Mapping[str, float], position: Position, outputs: int) -> list[str]:
    """The signs of a collapse in a validation; none at the start of a run or with few images.

    Args:
        measured: the metrics of `FrozenFeatures`.
        outputs: number of prototypes, K.
    """
    if position.progress < SETTLED or measured["images"] < FEWEST_IMAGES:
        return []
    signs = []
    if "teacher_entropy" in measured:
        # The mutual information of image and output. It is 0 if all images have the same output.
        information = measured["batch_entropy"] - measured["teacher_entropy"]
        largest = math.log(min(outputs, measured["images"]))
        if information < LEAST_INFORMATION * largest:
            signs.append(
                f"the teacher's output hardly depends on the image (mean entropy {measured['teacher_entropy']:.2f}, "
                f"entropy of the mean {measured['batch_entropy']:.2f}, largest possible {math.log(outputs):.2f})"
            )
    if measured["rankme"] < LEAST_RANK:
        signs.append(f"the features have an effective rank of {measured['rankme']:.1f}")
    if measured["feature_std"] < LEAST_STD:
        signs.append(f"the features of all images are alike (feature_std {measured['feature_std']:.3f}, 1 at best)")
    return signs
