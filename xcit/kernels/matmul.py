"""Products of tokens with a matrix, by the library that is fastest where the tokens are.

On x86 CPUs torch's linear layer goes to MKL; the operator that torch's own compiler emits goes to oneDNN. With AVX-512
that was faster on every CPU by AMD that we measured, by 10 to 130 %, and it can apply a GELU on the way. On one by
Intel the two libraries are as fast, but MKL makes the products of the backward pass 5 to 20 % sooner. With AVX2 alone
oneDNN is slower, by up to 27 %: there torch's choice stands.
"""

import math
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu.library import gelu_pass
from .custom_op import opaque
from .dispatch import is_exporting


def is_made_by_intel() -> bool:
    """MKL is Intel's, and is at its best there."""
    known = Path("/proc/cpuinfo")
    return "GenuineIntel" in (known.read_text() if known.is_file() else platform.processor())


INSTRUCTIONS = torch.backends.cpu.get_cpu_capability()
HAS_ONEDNN = (
    INSTRUCTIONS in ("AVX2", "AVX512")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
ONEDNN = HAS_ONEDNN and INSTRUCTIONS == "AVX512"
ONEDNN_BACKWARD = ONEDNN and not is_made_by_intel()
ONEDNN_DTYPES = {torch.float32}
if HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    ONEDNN_DTYPES.add(torch.bfloat16)


def by_onednn(x: Tensor) -> bool:
    """What is exported or traced may run elsewhere: there too torch's choice stands."""
    if not ONEDNN or x.device.type != "cpu" or x.dtype not in ONEDNN_DTYPES:
        return False
    if torch.compiler.is_compiling():
        return not is_exporting()
    return torch._C._get_tracing_state() is None


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """x Wᵀ + b and, if so told, a GELU of it, without a graph: (…, I), (O, I), (O,) → (…, O)."""
    if by_onednn(x):
        return onednn_product(x, weight, bias, gelu)
    y = F.linear(x, weight, bias)
    return gelu_pass(y, in_place=True) if gelu else y


def input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """gradient W, without a graph: (…, O), (O, I) → (…, I)."""
    return product(gradient, weight.mT) if ONEDNN_BACKWARD and by_onednn(gradient) else gradient @ weight


def weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Σ over tokens of gradient ⊗ x: (…, O), (…, I) → (O, I)."""
    gradient, x = gradient.flatten(0, -2), x.flatten(0, -2)
    if x.dtype != torch.float32 or not (ONEDNN_BACKWARD and by_onednn(x)):
        return gradient.mT @ x
    return onednn_weight_gradient(gradient, x)


def bias_gradient(gradient: Tensor) -> Tensor:
    """Σ over tokens of gradient: (…, O) → (O,); as exact as the products are."""
    gradient = gradient.flatten(0, -2)
    if gradient.device.type != "cpu" or gradient.dtype != torch.float32 or torch.compiler.is_compiling():
        return gradient.sum(0)
    return (gradient.new_ones(1, len(gradient)) @ gradient)[0]  # takes six tenths of the time of the sum


def like_product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def like_weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(gradient.shape[1], x.shape[1])


@opaque("xcit::product", like_product)  # the compiler would send it to MKL, or refuse it
def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    after: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *after)


@opaque("xcit::weight_gradient", like_weight_gradient)
def onednn_weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """That of a 1 × 1 convolution, for which oneDNN wants the tokens in several images."""
    images = math.gcd(len(x), 16)
    if images < 4:
        return gradient.mT @ x
    as_images = (images, 1, len(x) // images, -1)  # seen with the channels last
    maps = (t.reshape(as_images).permute(0, 3, 1, 2) for t in (gradient, x))
    weight = x.new_empty(gradient.shape[1], x.shape[1], 1, 1)
    options = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False])
    return torch.ops.aten.convolution_backward(*maps, weight, None, *options)[1].flatten(1)


def packed(weight: Tensor) -> Tensor:
    """The weight as oneDNN lays it out, for `product`: done once instead of at every call."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())


def convolution(x: Tensor, weight: Tensor, bias: Tensor, stride: int, gelu: bool) -> Tensor:
    """A 3 × 3 convolution with padding 1, then a GELU; a weight of (C, 1, 3, 3) is for each channel by itself."""
    groups = x.shape[1] // weight.shape[1]
    if by_onednn(x):
        after: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
        shape = ([1, 1], [stride, stride], [1, 1], groups)
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *shape, *after)
    y = F.conv2d(x, weight, bias, stride=stride, padding=1, groups=groups)
    return gelu_pass(y, in_place=True) if gelu else y
