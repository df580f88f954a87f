"""The backward pass of LayerNorm in C++ (layer_norm.cpp)."""

import torch
from torch import Tensor

from .library import TILE, call_dense


def fits(x: Tensor) -> bool:
    """Whether the kernel accepts tokens (…, C) of this shape. It copies tensors that are not contiguous."""
    return x.shape[-1] % TILE == 0


def layer_norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor, residual: Tensor | None
) -> tuple[Tensor, ...]:
    """The gradients of x, with the residual added to it, of scale and of shift."""
    C = x.shape[-1]
    grad_x, grad_affine = x.new_empty(x.shape), x.new_empty(2, C, dtype=torch.float64)
    call_dense("layer_norm_backward", grad, x, mean, rstd, scale, residual, grad_x, grad_affine, x.numel() // C, C)
    return grad_x, *grad_affine.float()
