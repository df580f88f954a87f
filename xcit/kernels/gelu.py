"""GELU forward and backward without a graph, for functions that recompute it in their backward pass."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu.gelu import fits as fits_cpu
from .cpu.gelu import gelu as cpu_gelu
from .cpu.gelu import gelu_, gelu_backward_
from .cpu.gelu import gelu_grad_x as cpu_gelu_grad_x
from .dispatch import Backend, backend_for


def gelu(x: Tensor, *, in_place: bool = False) -> Tensor:
    """gelu(x), of any shape. With `in_place` x may be overwritten."""
    if not runs_on_cpu("gelu", x):
        return F.gelu(x)
    return gelu_(x) if in_place else cpu_gelu(x)


def gelu_backward(x: Tensor, grad: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
    """(gelu(x), the gradient of x), given the gradient of gelu(x), which may be overwritten.

    backend: the result of `backend_for("gelu_backward", x)` in the forward pass. "cpu" is checked again, because the
        gradient's strides may differ.
    """
    if backend == "triton":
        from .triton.gelu import gelu_backward as triton_gelu_backward

        return triton_gelu_backward(x, grad)
    if not runs_on_cpu("gelu_backward", x, grad):
        return F.gelu(x), torch.ops.aten.gelu_backward(grad, x)
    return gelu_backward_(x, grad)


def gelu_grad_x(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of x, given the gradient of gelu(x)."""
    return cpu_gelu_grad_x(x, grad) if runs_on_cpu("gelu_backward", x, grad) else torch.ops.aten.gelu_backward(grad, x)


def runs_on_cpu(operation: str, *tensors: Tensor) -> bool:
    return backend_for(operation, *tensors, fits=fits) == "cpu"


def fits(*tensors: Tensor, backend: Backend, compiled: bool) -> bool:
    return backend == "triton" or fits_cpu(*tensors, compiled=compiled)
