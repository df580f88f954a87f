"""Products of tokens with a matrix, by the library that is fastest where the tokens are.

On x86 CPUs torch's linear layer goes to MKL; the operator that torch's own compiler emits goes to oneDNN, which is
faster on every CPU that we measured, by 10 to 130 %, and can apply a GELU on the way. Elsewhere torch's choice stands.
"""

import math
import platform

import torch
import torch.nn.functional as F
from torch import Tensor

ONEDNN = platform.machine().lower() in ("x86_64", "amd64") and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def by_onednn(x: Tensor) -> bool:
    if not (ONEDNN and x.device.type == "cpu" and torch.backends.mkldnn.is_available()):
        return False
    if torch.compiler.is_exporting():  # what is exported may run elsewhere
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b without a graph: (…, I), (O, I), (O,) → (…, O)."""
    if by_onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def product_gelu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """gelu(x Wᵀ + b), likewise."""
    if by_onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")
    return F.gelu(F.linear(x, weight, bias))


def weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Σ over tokens of gradient ⊗ x: (…, O), (…, I) → (O, I).

    oneDNN has it as the weight gradient of a 1 × 1 convolution, for which it wants the tokens in several images.
    """
    gradient, x = gradient.flatten(0, -2), x.flatten(0, -2)
    images = math.gcd(len(x), 16)
    if x.dtype != torch.float32 or images < 4 or not by_onednn(x):
        return gradient.mT @ x
    as_images = (images, 1, len(x) // images, -1)  # seen with the channels last
    maps = (t.reshape(as_images).permute(0, 3, 1, 2) for t in (gradient, x))
    weight = x.new_empty(gradient.shape[1], x.shape[1], 1, 1)
    options = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False])
    return torch.ops.aten.convolution_backward(*maps, weight, None, *options)[1].flatten(1)


def packed(weight: Tensor) -> Tensor:
    """The weight as oneDNN lays it out, for `product` and `product_gelu`: done once instead of at every call."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())


def convolution(x: Tensor, weight: Tensor, bias: Tensor, stride: int, gelu: bool) -> Tensor:
    """A 3 × 3 convolution with padding 1, then a GELU; a weight of (C, 1, 3, 3) is for each channel by itself."""
    groups = x.shape[1] // weight.shape[1]
    if by_onednn(x):
        after: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
        shape = ([1, 1], [stride, stride], [1, 1], groups)
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *shape, *after)
    y = F.conv2d(x, weight, bias, stride=stride, padding=1, groups=groups)
    return F.gelu(y) if gelu else y
