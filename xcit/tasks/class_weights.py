"""Weights of classes and labels: given, or balanced."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..engine.task import Target
from ..errors import InputError

ClassWeights = Literal["balanced"] | list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None

SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
"""The least that losses of classes and labels raise to a power, since the power of 0 may have an infinite gradient."""


def weights_of(given: ClassWeights, target: Target) -> Tensor | None:
    """The weight of each class, or of the positives of each label, (K,), fp32; None for none.

    Balanced weights of classes are images / (classes × images of the class), with a mean of 1 over the training
    images; classes without images have 0. Those of labels are negatives / positives; labels without positives have 1.
    It is None, too, if balanced weights are asked for and the counts are unknown; see `require_counts`.

    Raises:
        InputError: a list does not have one weight for each class.
    """
    if isinstance(given, list):
        if len(given) != len(target.classes):
            raise InputError(f"task.class_weights: holds {len(given)} weights; the data have {len(target.classes)}")
        return torch.tensor(given, dtype=torch.float32)
    if given is None or target.counts is None:
        return None
    counts = torch.tensor(target.counts, dtype=torch.float64)
    if target.kind == "class":
        weights = counts.sum() / ((counts > 0).sum() * counts)
        return weights.where(counts > 0, 0.0).float()
    known = torch.tensor(target.known, dtype=torch.float64)
    return ((known - counts) / counts).where(counts > 0, 1.0).float()


def require_counts(given: ClassWeights, target: Target) -> None:
    """Refuse to train with balanced weights of unknown counts."""
    if given == "balanced" and target.counts is None:
        raise InputError(
            "task.class_weights=balanced: the data set does not say how many images a class has; give a list"
        )
