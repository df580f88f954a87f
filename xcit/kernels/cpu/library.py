"""Passes over the tokens in C++ (passes_*.cpp), each beside the operations of torch that it stands for.

pip compiles them for x86 CPUs where it finds a compiler. Where they are missing, and for all but fp32 on a CPU, torch's
operations run: here, or where `takes_attention` and `takes_tokens` are asked.
"""

import ctypes
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..custom_op import opaque
from ..dispatch import is_ordinary, possible

TILE = 16
"""Numbers that the passes take at a time."""


FUNCTIONS = (
    "gelu",
    "gelu_gradient",
    "moments",
    "batchnorm_gelu",
    "batchnorm_gelu_gradient",
    "layer_norm_gradient",
    "attend",
    "attend_backward",
    "norm_depthwise",
    "gelu_affine_depthwise",
    "gelu_affine_taps",
    "local_patch_gradient",
    "local_patch",
)


def load() -> ctypes.CDLL | None:
    """What was compiled for the instructions of this CPU, if anything was, and not before one of the functions."""
    instructions = torch.backends.cpu.get_cpu_capability().lower()
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_passes_{instructions}{suffix}")
        if path.is_file():
            library = ctypes.CDLL(str(path))
            return library if all(hasattr(library, name) for name in FUNCTIONS) else None
    return None


LIBRARY = load()


def compiled_for(*tensors: Tensor) -> bool:
    """Whether there are passes for tensors of this type, on this device."""
    here = all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
    return LIBRARY is not None and here and possible(tensors[0])


def native(*tensors: Tensor) -> bool:
    """Whether a pass in C++ can take these as they lie in memory."""
    if torch.compiler.is_compiling() or not compiled_for(*tensors):
        return False
    return all(is_ordinary(x) and is_dense(x) for x in tensors)


def is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


def dense(x: Tensor) -> Tensor:
    """x as a pass can take it; a copy only of what a compiled function may bring."""
    return x if is_dense(x) else x.contiguous()


def call(function: str, *arguments: Tensor | int | float | None) -> None:
    assert LIBRARY is not None
    getattr(LIBRARY, function)(*map(for_c, arguments))


def call_dense(function: str, *arguments: Tensor | int | float | None) -> None:
    """With copies of what is not contiguous; whatever the function writes to has to be."""
    call(function, *(given.contiguous() if isinstance(given, Tensor) else given for given in arguments))


def for_c(argument: Tensor | int | float | None) -> Any:
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return ctypes.c_void_p(None if argument is None else argument.data_ptr())


def gelu_pass(x: Tensor, *, in_place: bool = False) -> Tensor:
    """A GELU, without a graph; in place where that can be, if so told."""
    if not takes_gelu(x):
        return F.gelu(x)
    if torch.compiler.is_compiling() or not in_place:
        return new_gelu(x)
    call("gelu", x, x, x.numel())
    return x


def gelu_backward_pass(x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """(gelu(x), the gradient of x), given the gradient of gelu(x), which may be written over."""
    if not takes_gelu(x, gradient):
        return F.gelu(x), torch.ops.aten.gelu_backward(gradient, x)
    if torch.compiler.is_compiling():
        return new_gelu_backward(x, gradient)
    activated = torch.empty_like(x)
    call("gelu_gradient", x, gradient, activated, gradient, x.numel())
    return activated, gradient


def gelu_gradient_pass(x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of x, given that of gelu(x)."""
    return new_gelu_gradient(x, gradient) if takes_gelu(x, gradient) else torch.ops.aten.gelu_backward(gradient, x)


def takes_gelu(*tensors: Tensor) -> bool:
    """Whether the passes of the GELU take x, or x and a gradient."""
    x = tensors[0]
    if torch.compiler.is_compiling():
        # What is compiled calls the pass, since its own GELU takes several times as long. But how a map lies in memory
        # is the compiler's affair.
        return compiled_for(*tensors) and x.dim() < 4 and x.numel() % TILE == 0
    return native(*tensors) and x.numel() % TILE == 0 and len({t.stride() for t in tensors}) == 1


def like_gelu(x: Tensor, gradient: Tensor | None = None) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@opaque("xcit::gelu_pass", like_gelu)
def new_gelu(x: Tensor) -> Tensor:
    x = dense(x)
    y = torch.empty_like(x)
    call("gelu", x, y, x.numel())
    return y


@opaque("xcit::gelu_backward_pass", lambda x, gradient: (like_gelu(x), like_gelu(x)))
def new_gelu_backward(x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    x, gradient = dense(x), dense(gradient)
    activated, of_x = torch.empty_like(x), torch.empty_like(x)
    call("gelu_gradient", x, gradient, activated, of_x, x.numel())
    return activated, of_x


@opaque("xcit::gelu_gradient_pass", like_gelu)
def new_gelu_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    x, gradient = dense(x), dense(gradient)
    of_x = torch.empty_like(x)
    call("gelu_gradient", x, gradient, None, of_x, x.numel())
    return of_x


def moments_pass(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, without a graph: (…, C) → (C,), (C,)."""
    if not takes_channels(x):
        var, mean = torch.var_mean(x.flatten(0, -2), 0, correction=0)
        return mean, var
    C = x.shape[-1]
    mean, var = x.new_empty(2, C)
    call("moments", x, mean, var, x.numel() // C, C)
    return mean, var


def batchnorm_gelu_pass(x: Tensor, mean: Tensor, slope: Tensor, shift: Tensor) -> Tensor:
    """gelu(slope · (x - mean) + shift), without a graph: (…, C) and three of (C,) → (…, C)."""
    if not takes_channels(x, mean, slope, shift):
        return F.gelu((x - mean) * slope + shift)
    C = x.shape[-1]
    y = torch.empty_like(x)
    call("batchnorm_gelu", x, mean, slope, shift, y, x.numel() // C, C)
    return y


def batchnorm_gelu_gradient_pass(
    gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, scale and shift, given that of gelu(scale · (x - mean) · rstd + shift)."""
    C, gradient = x.shape[-1], gradient.contiguous()
    places = x.shape[:-1].numel()
    given = (x, gradient, mean, rstd, scale, shift)
    if not (takes_channels(x, mean, rstd, scale, shift) and takes_channels(gradient)):
        hat = (x - mean) * rstd
        of_normed = torch.ops.aten.gelu_backward(gradient, hat * scale + shift)
        of_scale, of_shift = ((of_normed * by).sum(tuple(range(x.dim() - 1))) for by in (hat, 1))
        return (of_normed - (of_shift + hat * of_scale) / places) * (rstd * scale), of_scale, of_shift
    of_x, (of_scale, of_shift) = torch.empty_like(x), x.new_empty(2, C)
    call("batchnorm_gelu_gradient", *given, of_x, of_scale, of_shift, places, C)
    return of_x, of_scale, of_shift


def takes_channels(x: Tensor, *of_channels: Tensor) -> bool:
    """Whether the passes of BatchNorm take x, (…, C), with what each channel has, (C,)."""
    if not native(x, *of_channels) or x.shape[-1] % TILE:
        return False
    return x.is_contiguous() and all(t.is_contiguous() and t.shape == x.shape[-1:] for t in of_channels)


def takes_tokens(x: Tensor, *others: Tensor | None) -> bool:
    """Whether a pass that copies what is strided takes tokens, (…, C), and what goes with them."""
    given = [x, *(other for other in others if other is not None)]
    if not compiled_for(*given) or x.shape[-1] % TILE:
        return False
    return torch.compiler.is_compiling() or all(map(is_ordinary, given))


def layer_norm_backward_pass(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    wanted: list[bool],
) -> tuple[Tensor | None, ...]:
    """The gradients of x, scale and shift, at least those that are wanted, given that of the layer norm of x.

    To that of x the residual is added. mean and rstd: (…, 1), of each token.
    """
    if torch.compiler.is_compiling() or not takes_tokens(x, gradient, mean, rstd, scale, residual):
        of_norm = gradient, x, x.shape[-1:], mean, rstd, scale, shift
        of_x, *of_rest = torch.ops.aten.native_layer_norm_backward(*of_norm, wanted)
        return of_x if of_x is None or residual is None else residual + of_x, *of_rest
    C = x.shape[-1]
    of_x, of_parameters = x.new_empty(x.shape), x.new_empty(2, C, dtype=torch.float64)
    call_dense("layer_norm_gradient", gradient, x, mean, rstd, scale, residual, of_x, of_parameters, x.numel() // C, C)
    return of_x, *of_parameters.float()


def takes_attention(qkv: Tensor, temperature: Tensor) -> bool:
    """Whether `attend_pass` takes these: it has a thread for a head."""
    B, _, channels = qkv.shape
    heads = len(temperature)
    if channels % (3 * heads * TILE):
        return False
    if torch.compiler.is_compiling():  # the compiler calls the pass and does not look into it
        return compiled_for(qkv, temperature)
    return native(qkv, temperature) and B * heads >= torch.get_num_threads()


def like_attend(qkv: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, N, channels = qkv.shape
    heads = len(temperature)
    d = channels // (3 * heads)
    inverse = qkv.new_empty(B, 2, heads, d, dtype=torch.float32)
    cosines, attention = (inverse.new_empty(B, heads, d, d) for _ in range(2))
    return qkv.new_empty(B, N, channels // 3), inverse, cosines, attention


def like_attend_backward(
    gradient: Tensor, qkv: Tensor, temperature: Tensor, inverse: Tensor, cosines: Tensor, attention: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format), torch.empty_like(temperature)


@opaque("xcit::attend_pass", like_attend)
def attend_pass(qkv: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `cross_covariance.forward` returns."""
    B, N, channels = qkv.shape
    heads = len(temperature)
    made = like_attend(qkv, temperature)
    call_dense("attend", qkv, temperature, *made, B, N, channels // 3, heads)
    return made


@opaque("xcit::attend_backward_pass", like_attend_backward)
def attend_backward_pass(
    gradient: Tensor, qkv: Tensor, temperature: Tensor, inverse: Tensor, cosines: Tensor, attention: Tensor
) -> tuple[Tensor, Tensor]:
    """What `cross_covariance.backward` returns."""
    B, N, channels = qkv.shape
    heads = len(temperature)
    of_qkv, of_temperature = qkv.new_empty(qkv.shape), qkv.new_empty(B, heads)
    given = qkv, temperature, inverse, cosines, attention, gradient
    call_dense("attend_backward", *given, of_qkv, of_temperature, B, N, channels // 3, heads)
    return of_qkv, of_temperature.sum(0)[:, None, None]
