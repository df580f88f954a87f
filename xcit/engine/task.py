"""Interfaces of the training loop: Task, Evaluator, Target, Position."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..preprocessing import Preprocessing

Losses = dict[str, Tensor]
"""Scalars by name. "loss" is what is minimized; the others are only reported."""


@dataclass(frozen=True)
class Target:
    """The kind of target in a data set, and the names of its classes."""

    kind: str
    """"class", "classes", "values", "boxes", "mask" or "none"."""
    classes: tuple[str, ...] = ()
    """The names of the classes by number, or of the values; empty if the targets have none."""


@dataclass(frozen=True)
class Position:
    """The progress of a run, for schedules in a task's hooks."""

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
    """Measures a task. `update` is called for each batch, `compute` once at the end.

    `compute` sums over all processes. Its result must contain "images", the number of images.
    """

    def update(self, batch: Any) -> None: ...

    def compute(self) -> dict[str, float]: ...


class Details(NamedTuple):
    """What an evaluator knows besides its metrics, for the report."""

    per_class: list[dict[str, Any]]
    """A row for each class: its name under "class", then its metrics."""
    pictures: list[Any]
    """Pillow images: the predictions, drawn on the first images of the main process."""


@runtime_checkable
class DetailedEvaluator(Evaluator, Protocol):
    """An evaluator with a table of classes and pictures for the report."""

    def details(self) -> Details:
        """Called after `compute`, in every process."""


class Task(nn.Module):
    """A model with its training objective. `forward(batch)` returns named losses, averaged over the batch.

    The state dict must hold everything that must survive a crash. Store it in modules (a momentum teacher) or buffers
    (a center), and register these in `__init__`.
    """

    view: ClassVar[str]
    """The view that it learns from and is evaluated by: a name in data/views."""
    target_kinds: ClassVar[tuple[str, ...]]
    """The kinds of target that it learns from."""
    headline: ClassVar[str]
    """The metric by which the best checkpoint is chosen; higher is better. See `headline_for`."""
    backbone: ClassVar[str] = "model"
    """The submodule that others load from a checkpoint: what pretrained= and eval.py take."""
    networks: ClassVar[Mapping[str, str]] = {"model": "model"}
    """Name → submodule of each network of the model's kind: a student and its teacher, for example."""
    nondeterministic: ClassVar[str] = ""
    """As "task=NAME needs an operation" without a deterministic form on a GPU: there deterministic=true is refused."""
    on_training_line: ClassVar[tuple[str, ...]] = ()
    """The losses that the progress line shows besides "loss"."""
    on_validation_line: ClassVar[tuple[str, ...]] = ()
    """The metrics of a validation that it shows besides the headline metric."""
    in_curves: ClassVar[tuple[str, ...]] = ()
    """The metrics of a validation, besides loss, that have a panel in curves.png; empty: all."""

    def __init__(self, model: nn.Module, target: Target) -> None:
        """model: the network that the optimizer trains."""
        super().__init__()
        self.model, self.target = model, target

    @classmethod
    def num_outputs(cls, target: Target) -> int:
        """The outputs that the model's classifier needs; 0 means a model without one."""
        return len(target.classes)

    @classmethod
    def headline_for(cls, target: Target) -> str:
        """The headline metric on data with these targets."""
        return cls.headline

    @classmethod
    def check_options(cls, options: Mapping[str, Any], view_options: Mapping[str, Any]) -> None:
        """Raise an InputError if the options contradict each other or the view's, or need what is not installed."""

    @classmethod
    def check_pass(cls, options: Mapping[str, Any], images: int, size: int) -> None:
        """Raise an InputError if the task cannot learn from passes of so many images, over all processes.

        size: the smallest of the training sizes, in pixels.
        """

    def preprocessing(self, of_model: Preprocessing) -> Preprocessing:
        """What the task expects of its images, made from what its model expects: another resize rule, for example."""
        return of_model

    def forward(self, batch: Any) -> Losses:
        raise NotImplementedError

    def evaluator(self) -> Evaluator:
        raise NotImplementedError

    def inference_note(self) -> str:
        """How images are evaluated, for the results, if that is not the default; otherwise an empty string."""
        return ""

    # Hooks, which the engine calls without knowing why.

    def begin_training(self, device: torch.device) -> None:
        """Called once before the first update, not before an evaluation. Fetch what only training needs.

        The state dict must stay the same: the optimizer and the EMA exist already.
        """

    def before_step(self, position: Position, optimizer: torch.optim.Optimizer) -> None:
        """Called after backward and clipping, before the optimizer step: cancel gradients, or schedule weight decay."""

    def after_update(self, position: Position) -> None:
        """Called after each update: update a momentum teacher, or anneal a temperature."""

    def advise(self, measured: Mapping[str, float], position: Position) -> list[str]:
        """Called after each validation with its metrics. Return what the user should know, in lines to print."""
        return []
