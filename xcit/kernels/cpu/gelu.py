"""GELU in C++ (gelu.cpp), with its derivative from one exponential. Without a graph."""

import torch
from torch import Tensor

from .library import TILE, call, custom_op, is_dense, unless_compiled


def fits(x: Tensor, *others: Tensor, compiled: bool) -> bool:
    """Whether the kernels accept tensors of these shapes and strides.

    In compiled code they copy tensors that are not contiguous. Maps with channels last are left to the compiler, which
    chooses their strides.
    """
    if x.numel() % TILE:
        return False
    return x.dim() < 4 if compiled else all(is_dense(t) and t.stride() == x.stride() for t in (x, *others))


def gelu_fake(x: Tensor, grad: Tensor | None = None) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@custom_op("xcit::gelu", gelu_fake)
def gelu(x: Tensor) -> Tensor:
    x = dense(x)
    y = torch.empty_like(x)
    call("gelu", x, y, x.numel())
    return y


@custom_op("xcit::gelu_backward", lambda x, grad: (gelu_fake(x), gelu_fake(x)))
def gelu_backward(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """(gelu(x), the gradient of x), given the gradient of gelu(x)."""
    x, grad = dense(x), dense(grad)
    activated, grad_x = torch.empty_like(x), torch.empty_like(x)
    call("gelu_backward", x, grad, activated, grad_x, x.numel())
    return activated, grad_x


@unless_compiled(gelu)
def gelu_(x: Tensor) -> Tensor:
    """gelu(x), in place. Compiled code makes a copy: its operators cannot change an argument and return it."""
    call("gelu", x, x, x.numel())
    return x


@unless_compiled(gelu_backward)
def gelu_backward_(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Like `gelu_backward`, but the gradient of x overwrites that of gelu(x)."""
    activated = torch.empty_like(x)
    call("gelu_backward", x, grad, activated, grad, x.numel())
    return activated, grad


@custom_op("xcit::gelu_grad_x", gelu_fake)
def gelu_grad_x(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of x, given the gradient of gelu(x)."""
    x, grad = dense(x), dense(grad)
    grad_x = torch.empty_like(x)
    call("gelu_backward", x, grad, None, grad_x, x.numel())
    return grad_x


def dense(x: Tensor) -> Tensor:
    """x itself, or a contiguous copy: compiled code may pass a tensor that is not dense."""
    return x if is_dense(x) else x.contiguous()
