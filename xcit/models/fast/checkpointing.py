"""Gradient checkpointing: the backward pass recomputes a layer's activations instead of saving them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...errors import InputError
from ...kernels import Kernels, forced_in_this_thread, forced_kernels


def set_checkpointing(model: nn.Module, enable: bool) -> None:
    """Switch gradient checkpointing on, in any model with `set_grad_checkpointing`: XCiT and timm's models.

    With `enable=False` the model stays as it is. timm's models with checkpointing update BatchNorm's running statistics
    twice in each step.
    """
    if not enable:
        return
    switch: Any = getattr(model, "set_grad_checkpointing", None)
    if switch is None:
        raise InputError(f"train.grad_checkpointing=true: {type(model).__name__} has no gradient checkpointing")
    switch()


def checkpointed(layer: nn.Module, *inputs: Any) -> Tensor:
    """layer(*inputs), recomputed in the backward pass.

    The recomputation uses the same random numbers and the same kernels, and does not change BatchNorm's running
    statistics.
    """

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), recomputation(layer, forced_kernels())

    return checkpoint(layer, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def recomputation(layer: nn.Module, kernels: Kernels) -> Iterator[None]:
    """The context of the recomputation, which autograd's threads enter."""
    with forced_in_this_thread(kernels), unchanged_statistics(layer):
        yield


@contextmanager
def unchanged_statistics(layer: nn.Module) -> Iterator[None]:
    """In this context BatchNorms update copies of their running statistics, which are discarded at the end."""
    norms = [module for module in layer.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
    for norm, name, buffer in kept:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)
