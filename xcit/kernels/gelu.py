"""What a function needs of its GELU that computes it again in its backward pass."""

import torch
from torch import Tensor

from .choice import by_triton
from .passes import gelu_backward_pass


def gelu_backward(x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """(gelu(x), the gradient of x), given the gradient of gelu(x), which may be written over."""
    if by_triton(x) and not torch.compiler.is_compiling():  # the compiler does both in a pass of its own
        from .triton_gelu import gelu_backward as twin

        return twin(x, gradient)
    return gelu_backward_pass(x, gradient)
