"""Accuracy across test resolutions (paper, figure 3): the same weights, the images at other sizes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import nn

from ..engine.loop import evaluate
from .cost import Meter


class Row(TypedDict):
    """A line of results.json and results.csv. top1 and top5 are percentages."""

    model: str
    checkpoint: str
    weights: str
    eval_set: str
    resolution: int
    crop_ratio: float
    top1: float
    top5: float
    loss: float
    images: int
    images_per_second: float
    peak_memory_mb: float


def sweep(
    tasks: Mapping[str, nn.Module],
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
    """A row for each of the weights ("raw", "ema") at each resolution.

    batches_at: the evaluation batches at a resolution. images_per_second counts decoding and all.
    """
    rows = []
    for resolution in resolutions:
        batches = batches_at(resolution)
        for weights, task in tasks.items():
            with Meter(device) as meter:
                measured = evaluate(task, batches, device, precision)
            rows.append(
                Row(
                    model=model,
                    checkpoint=checkpoint,
                    weights=weights,
                    eval_set=eval_set,
                    resolution=resolution,
                    crop_ratio=crop_ratio,
                    top1=measured["top1"],
                    top5=measured["top5"],
                    loss=measured["loss"],
                    images=int(measured["images"]),
                    images_per_second=measured["images"] / meter.seconds,
                    peak_memory_mb=meter.peak_memory_mb,
                )
            )
    return rows
