"""Accuracy across test resolutions (paper, figure 3): the same weights, images of other sizes."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..engine import distributed
from ..engine.loop import update_evaluator
from ..engine.progress import SILENT, Batches, Progress
from ..engine.task import DetailedEvaluator, Details, Task
from ..errors import Notice, print_note
from ..models.dry_run import takes_size
from .cost import Meter
from .details import write_details

SEVENTHS = (5, 6, 7, 8, 9, 10, 12)
"""The default resolutions in sevenths of the training size: 160 to 384 pixels for 224."""


class Measured(NamedTuple):
    """What an evaluation of one module at one resolution found."""

    metrics: dict[str, float]
    """By name; "images" is among them."""
    details: Details | None = None


# Measures a module: (module, size of the images in pixels, description for the progress).
Measure = Callable[[Any, int, str], Measured]

# A row of results.json and results.csv: model, checkpoint, weights, eval_set, resolution, crop_ratio, inference if the
# task has a note about it, the evaluator's metrics (for classification top1 and top5 in percent, loss, images),
# images_per_second, peak_memory_mb.
Row = dict[str, Any]


class Subject(NamedTuple):
    """What is evaluated: the part that all rows of an evaluation share."""

    model: str
    checkpoint: str
    eval_set: str
    crop_ratio: float


def sweep(
    modules: Mapping[str, nn.Module],
    measure: Measure,
    resolutions: Sequence[int],
    subject: Subject,
    device: torch.device,
    folder: Path | None = None,
) -> list[Row]:
    """A row for each kind of weights ("raw", "ema") at each resolution. A note tells of a loss that is not finite.

    Args:
        modules: what is measured, by the kind of its weights. images_per_second includes decoding and starting workers.
        folder: where the main process writes details, if there are any; see `write_details`.
    """
    rows: list[Row] = []
    for resolution in resolutions:
        for weights, module in modules.items():
            number = f"{len(rows) + 1} of {len(resolutions) * len(modules)}"
            with Meter(device) as meter:
                measured, details = measure(
                    module, resolution, f"evaluation {number}: {resolution} pixels, {weights} weights"
                )
            if distributed.is_main() and not math.isfinite(measured.get("loss", 0.0)):
                print_note(f"the loss of the {weights} weights at {resolution} pixels is {measured['loss']}")
            if details and folder and distributed.is_main():
                write_details(folder, details, resolution, weights)
            conditions = {"eval_set": subject.eval_set, "resolution": resolution, "crop_ratio": subject.crop_ratio}
            if isinstance(module, Task) and (note := module.inference_note()):
                conditions["inference"] = note
            cost = {
                "images_per_second": measured["images"] / meter.seconds,
                "peak_memory_mb": meter.peak_memory_mb,
            }
            first = {"model": subject.model, "checkpoint": subject.checkpoint, "weights": weights}
            rows.append(first | conditions | measured | cost)
    return rows


def by_evaluator(
    batches_at: Callable[[int], Batches[Any]], device: torch.device, precision: str, progress: Progress = SILENT
) -> Measure:
    """Measures a task with its own evaluator. batches_at makes the evaluation batches of a resolution."""

    def measure(task: Task, resolution: int, what: str) -> Measured:
        evaluator = update_evaluator(task, progress.track(batches_at(resolution), what), device, precision)
        metrics = evaluator.compute()
        return Measured(metrics, evaluator.details() if isinstance(evaluator, DetailedEvaluator) else None)

    return measure


def default_resolutions(image_size: int, patch_size: int = 1) -> list[int]:
    """The resolutions of an evaluation if none are given: from 5/7 to 12/7 of the training size, at most seven.

    They are rounded to multiples of a power of two, which is the largest one up to a seventh of the training size, but
    at least the patch size. So 224 gives 160, 192, 224, 256, 288, 320 and 384. The training size is always among them.

    Args:
        image_size: The training size in pixels.
        patch_size: Of the model, in pixels; 1 if it has none.
    """
    step = max(patch_size, 1 << (max(1, image_size // 7).bit_length() - 1))
    rounded = {max(1, round(image_size * share / 7 / step)) * step for share in SEVENTHS if share != 7}
    return sorted(rounded | {image_size})


def resolutions_for(
    model: nn.Module, image_size: int, patch_size: int = 1, given: Sequence[int] | None = None
) -> list[int]:
    """The resolutions of an evaluation: the given ones and the training size, which is image_size.

    By default they are `default_resolutions` without those that the model does not take; a notice lists these.

    Args:
        model: On the meta device, as `dry_run` returns it.
    """
    if given:
        return sorted({image_size, *given})
    sizes = default_resolutions(image_size, patch_size)
    taken = [size for size in sizes if size == image_size or takes_size(model, size)]
    if len(taken) < len(sizes):
        others = ", ".join(str(size) for size in sizes if size not in taken)
        warnings.warn(f"resolutions: the model does not take images of {others} pixels; they are left out", Notice, 2)
    return taken
