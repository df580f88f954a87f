"""The layer norm by hand: what a function needs that computes it again in its backward pass."""

import torch
from torch import Tensor

from .choice import by_triton


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The norm of x in dtype, and the mean and rstd of every token for the backward pass."""
    if by_triton(x) and not torch.compiler.is_compiling():  # the compiler makes it in the pass that makes x
        from .triton_norms import layer_norm as twin

        return twin(x, scale, shift, eps, dtype)
    normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], scale, shift, eps)
    return normed.to(dtype), mean, rstd


def layer_norm_backward(
    of_normed: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor, shift: Tensor, wanted: list[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of x, scale and shift, at least those that are wanted."""
    if by_triton(x) and not torch.compiler.is_compiling():
        from .triton_norms import layer_norm_backward as twin

        return twin(of_normed, x, mean, rstd, scale)
    given = of_normed.to(x.dtype), x, x.shape[-1:], mean, rstd, scale, shift
    return torch.ops.aten.native_layer_norm_backward(*given, wanted)
