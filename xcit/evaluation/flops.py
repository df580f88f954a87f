"""FLOPs of a forward pass, counted without computing anything."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..models import create_model
from ..preprocessing import Preprocessing


@functools.cache
def forward_flops(model: str, size: int, /, **options: Any) -> int:
    """FLOPs of one image of size × size pixels, where a multiply-add counts as two.

    The model is built on the meta device, so that it takes neither time nor memory.

    Args:
        model: its name, as `create_model` takes it, with the options.
    """
    with torch.device("meta"):
        network = create_model(model, **options).eval().requires_grad_(False)
        return counted(lambda: network(torch.empty(1, 3, size, size)))


def counted(run: Callable[[], object]) -> int:
    """FLOPs of what `run` does, on modules without gradients: the counter would follow the gradients, too."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@functools.cache
def teacher_flops(name: str, size: int | None) -> int:
    """FLOPs of one image in a model of timm. size: pixels; None for the size that the model was made for."""
    if size is None:
        with torch.device("meta"):
            size = Preprocessing.of_model(create_model("timm", name=name)).size[0]
    return forward_flops("timm", size, name=name)
