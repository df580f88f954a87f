"""Accuracy across test resolutions (paper, figure 3): the same weights, images of other sizes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from ..engine.loop import evaluate
from ..engine.task import Task
from .cost import Meter

# A row of results.json and results.csv: model, checkpoint, weights, eval_set, resolution, crop_ratio, the evaluator's
# metrics (for classification top1 and top5 in percent, loss, images), images_per_second, peak_memory_mb.
Row = dict[str, Any]


def sweep(
    tasks: Mapping[str, Task],
    batches_at: Callable[[int], Iterable[Any]],
    resolutions: Sequence[int],
    *,
    model: str,
    checkpoint: str,
    eval_set: str,
    crop_ratio: float,
    device: torch.device,
    precision: str,
) -> list[Row]:
    """A row for each kind of weights ("raw", "ema") at each resolution.

    batches_at makes the evaluation batches at a resolution. images_per_second includes decoding and starting workers.
    """
    rows: list[Row] = []
    for resolution in resolutions:
        batches = batches_at(resolution)
        for weights, task in tasks.items():
            with Meter(device) as meter:
                measured = evaluate(task, batches, device, precision)
            conditions = {"eval_set": eval_set, "resolution": resolution, "crop_ratio": crop_ratio}
            cost = {
                "images_per_second": measured["images"] / meter.seconds,
                "peak_memory_mb": meter.peak_memory_mb,
            }
            rows.append({"model": model, "checkpoint": checkpoint, "weights": weights} | conditions | measured | cost)
    return rows
