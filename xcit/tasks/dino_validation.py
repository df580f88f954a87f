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
LEAST_INFORMATION = 0.02
"""The least information of an output about its image, as a share of the largest possible."""
LEAST_RANK, LEAST_STD = 2.0, 0.1
"""The least effective rank and the least standard deviation of features that are not collapsed."""
REMEDIES = (
    "what usually helps: a lower task.teacher_temperature (0.04), task.centering=sinkhorn, a lower optim.lr, a larger "
    "batch, optim.clip_norm=0.3, task.norm_last_layer=true, or task.loss=simdino"
)


class FrozenFeatures:
    """The evaluator. Metrics, over the images of all processes:

    - knn_top1: k-NN accuracy in percent, k = 20, of each image among all others of the validation images; only if the
      data have classes.
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
        self.features: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.entropies: list[Tensor] = []
        self.sum: Tensor | None = None

    def update(self, batch: Any) -> None:
        features = self.backbone(batch.images)
        self.features.append(features.float().cpu())
        if batch.labels is not None:
            self.labels.append(batch.labels.cpu())
        if self.outputs is not None:
            probabilities = self.outputs(features)
            self.entropies.append(entropy(probabilities).cpu())
            total = probabilities.sum(dim=0)
            self.sum = total if self.sum is None else self.sum + total

    def compute(self) -> dict[str, float]:
        features = self.from_all(self.features)
        measured = {"rankme": rankme(features).item(), "feature_std": feature_std(features).item()}
        if self.labels:
            measured = {"knn_top1": leave_one_out_knn(features, self.from_all(self.labels), NEIGHBORS)} | measured
        if self.sum is not None:
            mean = distributed.total(self.sum) / len(features)
            measured |= {
                "teacher_entropy": self.from_all(self.entropies).mean().item(),
                "batch_entropy": entropy(mean).item(),
            }
        return measured | {"images": len(features)}

    @staticmethod
    def from_all(parts: list[Tensor]) -> Tensor:
        return torch.cat(distributed.from_all(torch.cat(parts)))


def signs_of_collapse(measured: Mapping[str, float], position: Position, outputs: int) -> list[str]:
    """A line that names the signs of a collapse in a validation; none at the start of a run.

    Args:
        measured: the metrics of `FrozenFeatures`.
        outputs: number of prototypes, K.
    """
    if position.progress < SETTLED:
        return []
    signs = []
    if "teacher_entropy" in measured:
        # The mutual information of image and output. It is 0 if all images have the same output.
        information = measured["batch_entropy"] - measured["teacher_entropy"]
        largest = math.log(min(outputs, measured["images"]))
        if information < LEAST_INFORMATION * largest:
            kind = "uniform" if measured["teacher_entropy"] > 0.5 * math.log(outputs) else "always the same"
            signs.append(
                f"the teacher's output is {kind} (entropy {measured['teacher_entropy']:.2f} of an image, "
                f"{measured['batch_entropy']:.2f} of the mean, at most {math.log(outputs):.2f})"
            )
    if measured["rankme"] < LEAST_RANK:
        signs.append(f"the features have an effective rank of {measured['rankme']:.1f}")
    if measured["feature_std"] < LEAST_STD:
        signs.append(f"the features of all images are alike (feature_std {measured['feature_std']:.3f}, 1 at best)")
    return [f"collapse: {'; '.join(signs)}; {REMEDIES}"] if signs else []
