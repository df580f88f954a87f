"""Interfaces of the training loop: Task, Evaluator, Target, Position."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..errors import InputError, unknown
from ..preprocessing import Preprocessing

Losses = dict[str, Tensor]
"""Scalars by name. "loss" is what is minimized; the others are only reported."""


@dataclass(frozen=True)
class Target:
    """The kind of target in a data set, and the names of its classes."""

    kind: str
    """"class", "classes", "values", "boxes", "mask" or "none"."""
    classes: tuple[str, ...] = ()
    """The names of the classes by number, or of the labels or values; empty if the targets have none."""
    # Of the training images. All are None if they are unknown, and in an evaluation, which does not need them.
    counts: tuple[int, ...] | None = None
    """The images of each class or label."""
    known: tuple[int, ...] | None = None
    """The images for which it is known whether they have the label, for "classes"."""
    mean: tuple[float, ...] | None = None
    """The mean of each value."""
    std: tuple[float, ...] | None = None
    """The standard deviation of each value."""


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
    tables: Mapping[str, list[dict[str, Any]]] = {}
    """Further tables by name, such as a confusion matrix."""


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
    augment: ClassVar[str] = ""
    """The file in conf/augment that a message proposes if options of this view are missing; may be empty."""
    target_kinds: ClassVar[tuple[str, ...]]
    """The kinds of target that it learns from."""
    headline: ClassVar[str]
    """The metric by which the best checkpoint is chosen, unless train.select names another. See `headline_for`."""
    backbone: ClassVar[str] = "model"
    """The submodule that others load from a checkpoint: what pretrained= and eval.py take."""
    networks: ClassVar[Mapping[str, str]] = {"model": "model"}
    """Name → submodule of each network of the model's kind: a student and its teacher, for example."""
    nondeterministic: ClassVar[str] = ""
    """As "task=NAME needs an operation" without a deterministic form on a GPU: there deterministic=true is refused."""
    is_capturable: ClassVar[bool] = False
    """Whether train.cuda_graph can record `forward`: the same operations on tensors for each batch of a shape, with
    nothing read back from the GPU, and a batch that is a named tuple of tensors."""
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

    @classmethod
    def metrics(cls, target: Target, num_images: int) -> tuple[str, ...]:
        """The metrics of a validation of so many images by which train.select can choose the best checkpoint."""
        return tuple(dict.fromkeys((cls.headline_for(target), *cls.on_validation_line)))

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

    def fit_to_validation(self, evaluator: Any) -> None:
        """Called in each validation of a run with its evaluator after all images, before `compute`. Choose what depends
        on the validation images, such as thresholds; keep it in buffers. Other evaluations do not call it.
        """

    def advise(self, measured: Mapping[str, float], position: Position) -> list[str]:
        """Called after each validation with its metrics. Return what the user should know, in lines to print."""
        return []


def input_of(
    task: Task, model: nn.Module, given: Mapping[str, Any], size: tuple[int, int], crop_ratio: float
) -> Preprocessing:
    """What a run makes of its images: what the model expects, changed by the configuration, and then by the task.

    Args:
        given: values of `Preprocessing` from the section `data`.
        size: (height, width) in pixels.

    Raises:
        InputError: a value is out of range, or the task does not resize images in the given way.
    """
    try:
        wanted = replace(Preprocessing.of_model(model), **given)
    except InputError as error:
        raise InputError(f"data.{error}") from None
    found = task.preprocessing(wanted)
    if "resize" in given and found.resize != given["resize"]:
        raise InputError(f"data.resize={given['resize']}: not for this task, which keeps the whole image; leave it out")
    return found.at(size if found.resize != "shortest" else min(size), crop_ratio)


def choose_headline(select: str | None, task: type[Task], target: Target, num_images: int) -> str:
    """The metric by which the best checkpoint is chosen.

    Args:
        select: train.select.
        num_images: of a validation.

    Raises:
        InputError: the task does not measure it.
    """
    metrics = task.metrics(target, num_images)
    if select is not None and select not in metrics:
        raise InputError(unknown(select, "train.select", metrics))
    return select or task.headline_for(target)
