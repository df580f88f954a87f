"""BatchNorm in training with the GELU after it, in C++ (batchnorm.cpp)."""

import torch
from torch import Tensor

from .library import TILE, call


def fits(x: Tensor, *parameters: Tensor) -> bool:
    """Whether the kernels accept x, (…, C), and the parameters, (C,) each."""
    if x.shape[-1] % TILE or not x.is_contiguous():
        return False
    return all(t.is_contiguous() and t.shape == x.shape[-1:] for t in parameters)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel: (…, C) → (C,), (C,)."""
    C = x.shape[-1]
    mean, var = x.new_empty(2, C)
    call("moments", x, mean, var, x.numel() // C, C)
    return mean, var


def batchnorm_gelu(x: Tensor, mean: Tensor, slope: Tensor, shift: Tensor) -> Tensor:
    """gelu(slope · (x - mean) + shift): (…, C) and three of (C,) → (…, C)."""
    C = x.shape[-1]
    y = torch.empty_like(x)
    call("batchnorm_gelu", x, mean, slope, shift, y, x.numel() // C, C)
    return y


def batchnorm_gelu_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, scale and shift, given that of gelu(scale · (x - mean) · rstd + shift)."""
    C = x.shape[-1]
    grad_x, (grad_scale, grad_shift) = torch.empty_like(x), x.new_empty(2, C)
    inputs = x, grad, mean, rstd, scale, shift
    call("batchnorm_gelu_backward", *inputs, grad_x, grad_scale, grad_shift, x.numel() // C, C)
    return grad_x, grad_scale, grad_shift
