"""Gradient checkpointing: a layer's activations are computed again in the backward pass instead of being kept."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...errors import InputError
from ...kernels import Kernels, forced, kind


def switch_on_checkpointing(model: nn.Module) -> None:
    """Of any model that has the switch, as ours and timm's have. timm's count BatchNorm's statistics twice then."""
    switch: Any = getattr(model, "set_grad_checkpointing", None)
    if switch is None:
        raise InputError(f"train.grad_checkpointing=true: {type(model).__name__} has no such switch")
    switch()


def recomputed(layer: nn.Module, *inputs: Any) -> Tensor:
    """layer(*inputs), the second time with the same random numbers and kernels, and BatchNorm's statistics stay."""

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), as_before(layer, kind())

    return checkpoint(layer, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def as_before(layer: nn.Module, kernels: Kernels) -> Iterator[None]:
    with forced(kernels), statistics_stay(layer):
        yield


@contextmanager
def statistics_stay(layer: nn.Module) -> Iterator[None]:
    """BatchNorms count on copies of their running statistics, which are thrown away."""
    norms = [module for module in layer.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
    for norm, name, buffer in kept:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)
