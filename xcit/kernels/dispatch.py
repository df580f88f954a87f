"""Decides what runs: a layer's plain or fast form, and for each operation torch, a CPU kernel or a Triton kernel.

This is the only file of the package that asks about devices, types, autocast, compilers, tracers, hooks and processors.
`chosen` answers for a layer, `backend_for` for an operation and its inputs. Conditions on shapes and strides stand
beside the operation.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from ..errors import InputError

Kernels = Literal["auto", "plain", "fast", "triton"]
KINDS: tuple[Kernels, ...] = ("auto", "plain", "fast", "triton")
Backend = Literal["torch", "cpu", "triton"]

TRITON = {"attend", "depthwise", "folded_local_patch", "gelu_backward", "layer_norm", "layer_norm_backward"}
"""Operations that have a Triton kernel, for fp32 and bf16 on a GPU."""
CPP = {"attend", "batchnorm_gelu", "folded_local_patch", "gelu", "gelu_backward", "layer_norm_backward", "local_patch"}
"""Operations that have a C++ kernel, for fp32 on an x86 CPU."""
ONEDNN_OPERATIONS = {"convolution", "grad_input", "grad_weight", "product"}
"""Operations that oneDNN does on an x86 CPU."""
EAGER_ONLY = {"batchnorm_gelu", "grad_bias", "layer_norm_backward"}
"""Operations whose CPU kernel compiled code does not call: there the compiler's own is as fast."""
OPERATIONS = TRITON | CPP | ONEDNN_OPERATIONS | {"covariance", "grad_bias"}


def is_made_by_intel() -> bool:
    """Whether the CPU is Intel's, for which MKL is at its best."""
    info = Path("/proc/cpuinfo")
    return "GenuineIntel" in (info.read_text() if info.is_file() else platform.processor())


INSTRUCTIONS = torch.backends.cpu.get_cpu_capability()
HAS_ONEDNN = (
    INSTRUCTIONS in ("AVX2", "AVX512")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
ONEDNN = HAS_ONEDNN and INSTRUCTIONS == "AVX512"
"""Whether products go to oneDNN. With AVX2 alone it is up to 27 % slower than MKL."""
ONEDNN_BACKWARD = ONEDNN and not is_made_by_intel()
"""Whether products of the backward pass do. On Intel's CPUs MKL is 5 to 20 % faster there."""
FP32 = {torch.float32}
ONEDNN_DTYPES = {torch.float32}
if HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    ONEDNN_DTYPES.add(torch.bfloat16)

HAS_TRITON = find_spec("triton") is not None
has_cpp = False
"""Whether compiled C++ kernels were loaded, see `announce_cpp`."""
verdicts: dict[int | None, bool] = {}
"""Whether the Triton kernels agree with torch, by the number of the GPU. self_check.py fills it."""

_kind: Kernels = "auto"
_without: frozenset[str] = frozenset()

ORDINARY = (Tensor, nn.Parameter)
BATCHNORMS = nn.modules.batchnorm._BatchNorm
FORM = {
    nn.Linear: ("bias",),
    nn.LayerNorm: ("bias",),
    nn.GELU: ("approximate",),
    nn.Conv2d: ("bias", "kernel_size", "stride", "padding", "padding_mode", "dilation", "groups"),
}
"""The options of a part that the kernels rely on."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = tuple(f"_global{name}" for name in HOOKS)


# What the user asks for.


@contextmanager
def forced(wanted: Kernels) -> Iterator[None]:
    """Force the form of all XCiT layers in this context, in all threads of the process.

    Args:
        wanted: "plain" runs the plain form. "fast" runs the fast form wherever it is possible, on a GPU with torch's
            own kernels. "triton" is "fast" with the Triton kernels. "auto" is the default: like "fast", with the
            Triton kernels where self_check.py found that they agree with torch.

    Second derivatives and forward-mode derivatives need "plain".
    """
    global _kind
    if wanted not in KINDS:
        raise InputError(f"kernels={wanted!r}: must be one of {', '.join(KINDS)}")
    before, _kind = _kind, wanted
    try:
        yield
    finally:
        _kind = before


def kind() -> Kernels:
    """What `forced` asks for here, or "auto"."""
    return _kind


@contextmanager
def without(*operations: str) -> Iterator[None]:
    """Run torch's implementation of these operations in this context: to measure what their kernels gain."""
    global _without
    if unknown := set(operations) - OPERATIONS:
        raise InputError(f"{', '.join(sorted(unknown))}: must be of {', '.join(sorted(OPERATIONS))}")
    before, _without = _without, _without | set(operations)
    try:
        yield
    finally:
        _without = before


# A layer: plain or fast.


def chosen(layer: nn.Module, x: Tensor) -> bool:
    """Whether the layer runs its fast form on x."""
    return _kind != "plain" and possible(x) and untouched(layer)


def possible(x: Tensor) -> bool:
    """Whether anything but plain torch operations may run on x.

    Not in fp16, which overflows in products over the tokens. Not where somebody wants to see torch's operations:
    torch.export, torch.jit, torch.func, and dispatch modes such as FLOP counters and fake tensors. Not in code that
    torch.compile compiles for a GPU, because its own kernels are faster there.
    """
    device = "cpu" if x.is_cpu else "cuda"
    if not (x.is_cpu or x.is_cuda) or x.dtype == torch.float16:
        return False
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        return False
    if is_compiling():
        return device == "cpu" and not is_exporting()
    return not is_observed()


def may_fold(x: Tensor) -> bool:
    """Whether a call on x may use tensors that were derived from the parameters, folded weights for example.

    Not for compilers, tracers and torch.func, which need to see how the output depends on the parameters, nor under
    global hooks, which FLOP counters use. fp16 is possible: no gradients are computed.
    """
    if is_compiling() or is_observed() or _kind == "plain" or any(getattr(modules, name) for name in GLOBAL_HOOKS):
        return False
    return possible(x) or compute_dtype(x) == torch.float16


def is_compiling() -> bool:
    """Whether torch.compile or torch.export traces this call."""
    return torch.compiler.is_compiling()


def is_exporting() -> bool:
    """Whether torch.export is at work. In torch 2.11 torch.compiler.is_exporting is true in torch.compile, too."""
    return torch.compiler._is_exporting_flag


def is_observed() -> bool:
    """Whether torch.jit.trace, torch.func or a dispatch mode sees each operation of this call."""
    if torch._C._len_torch_dispatch_stack() > 0:
        return True
    return torch._C._get_tracing_state() is not None or torch._C._are_functorch_transforms_active()


def untouched(layer: nn.Module) -> bool:
    """Whether the layer has the parts that it was made with, and none of them is watched.

    A part may have been replaced by one that does something else: LoRA, quantisation, another activation.
    """
    if parts_of(layer) != getattr(layer, "made_of", None) or any(getattr(modules, name) for name in GLOBAL_HOOKS):
        return False
    return not any(is_watched(part) for part in layer.modules() if part is not layer)


def is_watched(part: nn.Module) -> bool:
    """Whether the module has hooks, or a `forward` of its own instead of its class's."""
    return "forward" in vars(part) or any(getattr(part, name) for name in HOOKS)


def parts_of(layer: nn.Module) -> tuple[object, ...]:
    """The types and options of the layer's parts, as far as the kernels rely on them.

    A layer stores this as `made_of` when it is made. A layer without it, from an older pickle, runs its plain form.
    BatchNorms are left out: the kernels call them where they are not ordinary ones.
    """
    return tuple(
        (name, type(part), *(form_of(part, key) for key in FORM.get(type(part), ())))
        for name, part in layer.named_modules()
        if part is not layer and not isinstance(part, BATCHNORMS)
    )


def form_of(part: nn.Module, key: str) -> object:
    value = getattr(part, key)
    return value is not None if key == "bias" else value


# An operation: torch, a CPU kernel or a Triton kernel.


def announce_cpp(loaded: bool) -> None:
    """cpu/library.py tells whether it loaded the C++ kernels."""
    global has_cpp
    has_cpp = loaded


def backend_for(operation: str, x: Tensor, *others: Tensor | None) -> Backend:
    """Which implementation of the operation may run on these tensors; None stands for an argument that is missing."""
    if _kind == "plain" or operation in _without or not possible(x):
        return "torch"
    if runs_triton(x):
        return "triton" if operation in TRITON else "torch"
    return "cpu" if runs_on_cpu(operation, x, *others) else "torch"


def runs_triton(x: Tensor) -> bool:
    """Whether Triton kernels run on x."""
    if not x.is_cuda or not HAS_TRITON or _kind == "fast" or x.dtype not in (torch.float32, torch.bfloat16):
        return False
    return is_ordinary(x) and (_kind == "triton" or verdicts.get(x.device.index, False))


def awaits_verdict(images: Tensor) -> bool:
    """Whether Triton kernels could run on the images, but self_check.py has not checked their GPU yet."""
    if not images.is_cuda or not HAS_TRITON or images.device.index in verdicts or _kind != "auto":
        return False
    return possible(images) and is_ordinary(images) and not torch.cuda.is_current_stream_capturing()


def runs_on_cpu(operation: str, *tensors: Tensor | None) -> bool:
    """Whether a kernel for CPUs runs on these tensors."""
    if operation in ONEDNN_OPERATIONS:
        library = ONEDNN_BACKWARD if operation.startswith("grad") else ONEDNN
        dtypes = FP32 if operation == "grad_weight" else ONEDNN_DTYPES
    else:
        library, dtypes = (has_cpp and operation in CPP) or operation == "grad_bias", FP32
    compiling = is_compiling()
    if not library or (compiling and operation in EAGER_ONLY):
        return False
    for x in tensors:
        if x is not None and not (x.is_cpu and x.dtype in dtypes and (compiling or is_ordinary(x))):
            return False
    return True


def is_ordinary(x: Tensor) -> bool:
    """Whether x is a tensor with memory: not a fake, distributed or mapped one, and of no other subclass."""
    return type(x) in ORDINARY and torch._C._has_storage(x)


def allows_covariance(x: Tensor) -> bool:
    """Whether attention may go through the covariance of the tokens: only in fp32 and fp64.

    Its norms are differences of products that bf16 would round too early.
    """
    if _kind == "plain" or "covariance" in _without or not possible(x):
        return False
    return x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(x.device.type)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which to compute products with x: what autocast asks for. Autocast leaves fp64 alone."""
    device = x.device.type
    if x.dtype == torch.float64:
        return x.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
