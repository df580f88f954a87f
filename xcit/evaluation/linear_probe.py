"""Linear probe: a linear classifier of frozen features, trained at several learning rates in one pass."""

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..device import in_float64
from ..engine import distributed
from ..errors import InputError
from ..number_types import PositiveFloat, PositiveInt
from .features import Features, Kind

MOMENTUM, INIT_STD = 0.9, 0.01
"""DINO's."""
CHUNK = 4096
"""Number of images that are classified at once."""


class LinearProbe:
    """Top-1 and top-5 of a linear classifier, trained on the features of the training images, on the validation images.

    As in DINO's evaluation: SGD with momentum 0.9 and a cosine schedule, no weight decay, features as they are (not
    standardized). Other than there, each image has one feature (its center crop without augmentation), the cosine falls
    after each update, and the learning rate is chosen: by the loss on training images that are held out, since their
    accuracy is coarse if they are few.

    Args:
        features: Features that are classified: class_token, or class_and_mean (with the mean of the patch tokens).
        lr: Learning rates; the one that is best on held-out training images gives the result.
        epochs: Passes over the training features.
        batch_size: Features in a batch.
        held_out: Share of the training images that choose the learning rate; the classifiers do not learn from them.
        seed: Seed of the initial weights, the order and the held-out images.
    """

    headline = "linear_top1"

    def __init__(
        self,
        *,
        features: Kind = "class_token",
        lr: Annotated[list[PositiveFloat], Field(min_length=1)] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0],  # noqa: B006
        epochs: PositiveInt = 100,
        batch_size: PositiveInt = 256,
        held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1,
        seed: Annotated[int, Field(ge=0, lt=2**32)] = 0,
    ) -> None:
        self.features, self.lr, self.epochs, self.batch_size = features, lr, epochs, batch_size
        self.held_out, self.seed = held_out, seed

    def check(self, num_training: int) -> None:
        if num_training < 2:
            raise InputError(f"evaluate=linear: needs at least 2 training images, not {num_training}")

    def score(self, bank: Features, queries: Features, num_classes: int, device: torch.device) -> dict[str, float]:
        # One process trains: the numbers do not depend on how many there are.
        return distributed.on_main(lambda: self.probe(bank, queries, num_classes, device))

    def probe(self, bank: Features, queries: Features, num_classes: int, device: torch.device) -> dict[str, float]:
        random = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(bank.labels), generator=random)
        num_held_out = min(max(1, round(self.held_out * len(order))), len(order) - 1)
        held_out, learnt = order[:num_held_out], order[num_held_out:]
        vectors, labels = bank.vectors.to(device), bank.labels.to(device)
        classifiers = train_classifiers(
            vectors[learnt], labels[learnt], num_classes, self.lr, self.epochs, self.batch_size, random
        )
        chosen = int(classifiers.losses(vectors[held_out], labels[held_out]).nan_to_num(torch.inf).argmin())
        top1, top5 = classifiers.accuracy(queries.vectors.to(device), queries.labels.to(device))
        of_rates = {f"linear_top1@lr{rate:g}": top1[i].item() for i, rate in enumerate(self.lr)}
        best = {"linear_top1": top1[chosen].item(), "linear_top5": top5[chosen].item(), "linear_lr": self.lr[chosen]}
        return best | of_rates | {"images": len(queries.labels)}


class Classifiers(NamedTuple):
    """Linear classifiers of the same features, L of them."""

    weights: Tensor
    """(L, C, D)."""
    biases: Tensor
    """(L, C)."""

    def logits(self, vectors: Tensor) -> Tensor:
        """(B, D) → (L, B, C)."""
        return vectors @ self.weights.mT + self.biases[:, None]

    def losses(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy of each classifier: features (B, D) and labels (B,) → (L,)."""
        per_image = F.cross_entropy(
            self.logits(vectors).flatten(0, 1), labels.repeat(len(self.biases)), reduction="none"
        )
        return per_image.view(len(self.biases), -1).mean(dim=1)

    @torch.no_grad()
    def accuracy(self, vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """top1 and top5 in percent of each classifier, both (L,), fp64."""
        hits = []
        for batch, wanted in zip(vectors.split(CHUNK), labels.split(CHUNK), strict=True):
            best = self.logits(batch).topk(min(5, self.biases.shape[1])).indices
            hits.append(best == wanted[:, None])
        share = 100 * in_float64(torch.cat(hits, dim=1)).mean(dim=1)  # (L, 5)
        return share[:, 0], share.sum(dim=1)


def train_classifiers(
    vectors: Tensor,
    labels: Tensor,
    num_classes: int,
    rates: Sequence[float],
    epochs: int,
    batch_size: int,
    random: torch.Generator,
) -> Classifiers:
    """Train a classifier with each learning rate, all on the same batches, by SGD with momentum and a cosine schedule.

    Args:
        vectors, labels: (N, D) and (N,).
        rates: the learning rates at the start.
        random: draws the initial weights, which are the same for all, and the order; on the CPU.
    """
    start = torch.randn(num_classes, vectors.shape[1], generator=random).mul_(INIT_STD)
    weights = start.to(vectors).repeat(len(rates), 1, 1).requires_grad_()
    biases = weights.new_zeros(len(rates), num_classes).requires_grad_()
    classifiers = Classifiers(weights, biases)
    momenta = [torch.zeros_like(parameter) for parameter in classifiers]
    lr = vectors.new_tensor(rates)
    updates, done = epochs * math.ceil(len(vectors) / batch_size), 0
    for _ in range(epochs):
        for batch in torch.randperm(len(vectors), generator=random).to(vectors.device).split(batch_size):
            # The sum of the losses of all classifiers: each gets the gradient of its own.
            loss = classifiers.losses(vectors[batch], labels[batch]).sum()
            gradients = torch.autograd.grad(loss, list(classifiers))
            cosine = (1 + math.cos(math.pi * done / updates)) / 2
            with torch.no_grad():
                for parameter, gradient, momentum in zip(classifiers, gradients, momenta, strict=True):
                    momentum.mul_(MOMENTUM).add_(gradient)
                    parameter -= cosine * lr.view(-1, *[1] * (parameter.ndim - 1)) * momentum
            done += 1
    return classifiers
