"""What a function needs of its GELU that computes it again in its backward pass."""

from torch import Tensor

from .cpu.library import gelu_backward_pass


def gelu_backward(x: Tensor, gradient: Tensor, by_triton: bool) -> tuple[Tensor, Tensor]:
    """(gelu(x), the gradient of x), given the gradient of gelu(x), which may be written over."""
    if by_triton:
        from .triton.gelu import gelu_backward as twin

        return twin(x, gradient)
    return gelu_backward_pass(x, gradient)
