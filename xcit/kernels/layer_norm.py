"""LayerNorm forward and backward without a graph, for functions that recompute it in their backward pass.

backend: the result of `backend_for("layer_norm", x)` in the forward pass, for both passes.
"""

import torch
from torch import Tensor

from .cpu.layer_norm import fits
from .cpu.layer_norm import layer_norm_backward as cpu_backward
from .dispatch import Backend, backend_for


def layer_norm(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype, backend: Backend
) -> tuple[Tensor, ...]:
    """The norm of x, (…, C), in dtype, and for the backward pass the mean and rstd of every token, (…, 1)."""
    if backend == "triton":
        from .triton.layer_norm import layer_norm as triton_forward

        return triton_forward(x, scale, shift, eps, dtype)
    normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], scale, shift, eps)
    return normed.to(dtype), mean, rstd


def layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    needed: list[bool],
    backend: Backend,
) -> tuple[Tensor | None, ...]:
    """The gradients of x, with the residual added to it, of scale and of shift, given that of the norm.

    needed: which of the three must be computed.
    """
    if backend == "triton":
        from .triton.layer_norm import layer_norm_backward as triton_backward

        return triton_backward(grad, x, mean, rstd, scale, residual)
    grad = grad.to(x.dtype)
    if backend_for("layer_norm_backward", x, grad, mean, rstd, scale, residual) == "cpu" and fits(x):
        return cpu_backward(grad, x, mean, rstd, scale, residual)
    inputs = grad, x, x.shape[-1:], mean, rstd, scale, shift
    grad_x, *grad_affine = torch.ops.aten.native_layer_norm_backward(*inputs, needed)
    return grad_x if grad_x is None or residual is None else residual + grad_x, *grad_affine
