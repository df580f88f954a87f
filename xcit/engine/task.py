"""What the loop needs of a task, and of what evaluates it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..errors import InputError

Losses = dict[str, Tensor]
"""Scalars by name. "loss" is what is minimized; the others are only reported."""


@dataclass(frozen=True)
class Target:
    """What a data set's examples are labelled with."""

    kind: str
    """"class", "classes", "values", "boxes", "mask" or "none"."""
    classes: tuple[str, ...] = ()
    """The names of the classes by number; empty if the targets have none."""


@dataclass(frozen=True)
class Position:
    """Where a run stands, for whatever follows a schedule."""

    update: int
    """Updates done."""
    num_updates: int
    """Updates of the whole run."""
    updates_per_epoch: int

    @property
    def epoch(self) -> float:
        """Epochs done, with fractions."""
        return self.update / self.updates_per_epoch

    @property
    def progress(self) -> float:
        """The share of the run that is done, from 0 to 1."""
        return self.update / self.num_updates


class Evaluator(Protocol):
    """Measures a task: it is fed batch by batch and asked once.

    `compute` sums over all processes; its dictionary holds "images", their number.
    """

    def update(self, batch: Any) -> None: ...

    def compute(self) -> dict[str, float]: ...


class Task(nn.Module):
    """A model with what it learns. Called with a batch it returns named losses, means over the batch.

    Everything that must survive a crash is in the state dict: further modules (a momentum teacher), buffers (a center).
    """

    view: ClassVar[str]
    """The view that it learns from and is evaluated by: a name in data/views."""
    target_kinds: ClassVar[tuple[str, ...]]
    """The kinds of target that it learns from."""
    headline: ClassVar[str]
    """The metric by which the best checkpoint is chosen; higher is better."""
    backbone: ClassVar[str] = "model"
    """The submodule that others load from a checkpoint: what pretrained= and eval.py take."""

    def __init__(self, model: nn.Module, target: Target) -> None:
        super().__init__()
        self.model, self.target = model, target

    @classmethod
    def num_outputs(cls, target: Target) -> int:
        """The outputs that the model's classifier needs; 0 means a model without one."""
        return len(target.classes)

    @classmethod
    def check_options(cls, options: Mapping[str, Any], view_options: Mapping[str, Any]) -> None:
        """Raise an InputError if the task's options contradict the view's."""

    def forward(self, batch: Any) -> Losses:
        raise NotImplementedError  # each task has its own

    def evaluator(self) -> Evaluator:
        raise NotImplementedError  # likewise

    # Hooks, which the engine calls without knowing why.

    def begin_training(self, device: torch.device) -> None:
        """Called once before the first update, and not before an evaluation: fetch what only training needs."""

    def before_step(self, position: Position, optimizer: torch.optim.Optimizer) -> None:
        """Called when the gradients are complete: cancel some, or schedule a parameter group's weight decay."""

    def after_update(self, position: Position) -> None:
        """Called after each update: move a momentum teacher, or anneal a temperature."""


def require_target(name: str, task: type[Task], data_name: str, kind: str) -> None:
    """Refuse a data set whose targets the task does not learn from."""
    if kind not in task.target_kinds:
        accepted = " or ".join(task.target_kinds)
        raise InputError(f"task={name}: learns from targets of kind {accepted}; those of data={data_name} are {kind}")
