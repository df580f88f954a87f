"""What the loop needs of a task, and of what judges it."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Evaluator(Protocol):
    """What a task measures: fed batch by batch, then asked once. `compute` adds up over all processes."""

    def update(self, batch: Any) -> None: ...

    def compute(self) -> dict[str, float]: ...


class Task(nn.Module):
    """A model with what it is to learn. Called with a batch it returns the loss, a mean over the batch."""

    headline: str
    """The metric by which the best checkpoint is chosen; higher is better."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def begin_training(self, device: torch.device) -> None:
        """Fetch what only training needs; called once, before the first update and not before an evaluation."""

    def forward(self, batch: Any) -> Tensor:
        raise NotImplementedError  # each task has its own; without one it may still be asked for its parameters

    def evaluator(self) -> Evaluator:
        raise NotImplementedError  # likewise
