"""The layer norm by hand: what a function needs that computes it again in its backward pass.

by_triton: which kernel; whoever calls decides in the forward pass, for both.
"""

import torch
from torch import Tensor

from .cpu.library import layer_norm_backward_pass


def layer_norm(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype, by_triton: bool
) -> tuple[Tensor, ...]:
    """The norm of x in dtype, and the mean and rstd of every token for the backward pass."""
    if by_triton:
        from .triton.layer_norm import layer_norm as twin

        return twin(x, scale, shift, eps, dtype)
    normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], scale, shift, eps)
    return normed.to(dtype), mean, rstd


def layer_norm_backward(
    of_normed: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    wanted: list[bool],
    by_triton: bool,
) -> tuple[Tensor | None, ...]:
    """The gradients of x, to which the residual is added, of scale and of shift, at least those that are wanted."""
    if by_triton:
        from .triton.layer_norm import layer_norm_backward as twin

        return twin(of_normed, x, mean, rstd, scale, residual)
    return layer_norm_backward_pass(of_normed.to(x.dtype), x, mean, rstd, scale, shift, residual, wanted)
