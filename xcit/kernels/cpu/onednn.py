"""Products by oneDNN, with the operators that torch's own compiler emits. Without a graph."""

import math

import torch
from torch import Tensor

from .library import custom_op

Pointwise = tuple[str, list[float], str]


def product_fake(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


@custom_op("xcit::product", product_fake)  # the compiler would call MKL, or fail
def product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *pointwise(gelu))


def grad_weight_fake(grad: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(grad.shape[1], x.shape[1])


@custom_op("xcit::grad_weight", grad_weight_fake)
def grad_weight(grad: Tensor, x: Tensor) -> Tensor:
    """Σ over tokens of grad ⊗ x, (N, O), (N, I) → (O, I): the weight gradient of a 1 × 1 convolution.

    oneDNN computes it fast if the tokens are treated as several images.
    """
    num_images = math.gcd(len(x), 16)
    if num_images < 4:
        return grad.mT @ x
    as_images = (num_images, 1, len(x) // num_images, -1)  # with the channels last
    maps = (t.reshape(as_images).permute(0, 3, 1, 2) for t in (grad, x))
    weight = x.new_empty(grad.shape[1], x.shape[1], 1, 1)
    options = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False])
    return torch.ops.aten.convolution_backward(*maps, weight, None, *options)[1].flatten(1)


def pack_weight(weight: Tensor) -> Tensor:
    """The weight in oneDNN's layout. `product` converts any other weight in each call."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())


def pointwise(gelu: bool) -> Pointwise:
    """The arguments that tell oneDNN what to apply to the result."""
    return ("gelu", [], "none") if gelu else ("none", [], "")
