"""Products of tokens with a matrix, and 3 × 3 convolutions, by the fastest library. Without a graph.

On x86 CPUs torch's linear layer calls MKL. With AVX-512 dispatch.py chooses oneDNN: it was 10 to 130 % faster on every
AMD CPU that we measured, and can apply a GELU to the result.
"""

import torch.nn.functional as F
from torch import Tensor

from .cpu.onednn import grad_weight as onednn_grad_weight
from .cpu.onednn import pack_weight as pack_weight
from .cpu.onednn import product as onednn_product
from .dispatch import backend_for
from .gelu import gelu as apply_gelu


def by_onednn(x: Tensor) -> bool:
    """Whether oneDNN computes `product(x, …)`. Only oneDNN accepts a weight from `pack_weight`."""
    return backend_for("product", x) == "cpu"


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """x Wᵀ + b, optionally followed by a GELU: (…, I), (O, I), (O,) → (…, O)."""
    if by_onednn(x):
        return onednn_product(x, weight, bias, gelu)
    y = F.linear(x, weight, bias)
    return apply_gelu(y, in_place=True) if gelu else y


def grad_input(grad: Tensor, weight: Tensor) -> Tensor:
    """grad W: (…, O), (O, I) → (…, I)."""
    if backend_for("grad_input", grad) == "cpu":
        return onednn_product(grad, weight.mT, None, False)
    return grad @ weight


def grad_weight(grad: Tensor, x: Tensor) -> Tensor:
    """Σ over tokens of grad ⊗ x: (…, O), (…, I) → (O, I)."""
    grad, x = grad.flatten(0, -2), x.flatten(0, -2)
    return onednn_grad_weight(grad, x) if backend_for("grad_weight", x) == "cpu" else grad.mT @ x


def grad_bias(grad: Tensor) -> Tensor:
    """Σ over tokens of grad: (…, O) → (O,)."""
    grad = grad.flatten(0, -2)
    if backend_for("grad_bias", grad) == "cpu":
        return (grad.new_ones(1, len(grad)) @ grad)[0]  # takes 60 % of the time of the sum
    return grad.sum(0)


def convolution(x: Tensor, weight: Tensor, bias: Tensor, stride: int, gelu: bool) -> Tensor:
    """A 3 × 3 convolution with padding 1, optionally followed by a GELU. A weight (C, 1, 3, 3) makes it depthwise."""
    groups = x.shape[1] // weight.shape[1]
    y = F.conv2d(x, weight, bias, stride=stride, padding=1, groups=groups)
    return apply_gelu(y, in_place=True) if gelu else y
