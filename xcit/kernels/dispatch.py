"""Decides what runs: a layer's plain or fast form, and for each operation torch, a CPU kernel or a Triton kernel.

No other file here or in models/fast asks about devices, types, autocast, compilers, tracers, hooks and processors.
`runs_fast_form` decides for a layer, `backend_for` for an operation and its inputs.
"""

import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.utils._device import DeviceContext

from ..errors import InputError

Kernels = Literal["auto", "plain", "fast", "triton"]
KINDS: tuple[Kernels, ...] = ("auto", "plain", "fast", "triton")
Backend = Literal["torch", "cpu", "triton"]
Fits = Callable[..., bool]
"""Takes an operation's tensors, `backend` and `compiled`. Whether the backend's kernel accepts shapes and strides."""

TRITON = {"attend", "depthwise", "folded_local_patch", "gelu_backward", "layer_norm", "layer_norm_backward"}
"""Operations that have a Triton kernel, for fp32 and bf16 on a GPU."""
CPP = {"attend", "batchnorm_gelu", "folded_local_patch", "gelu", "gelu_backward", "layer_norm_backward", "local_patch"}
"""Operations that have a C++ kernel, for fp32 on an x86 CPU."""
ONEDNN_OPERATIONS = {"grad_input", "grad_weight", "product"}
"""Operations that oneDNN does on an x86 CPU."""
EAGER_ONLY = {"batchnorm_gelu", "grad_bias", "layer_norm_backward"}
"""Operations whose CPU kernel compiled code does not call, because the compiler's own code is as fast."""
OPERATIONS = TRITON | CPP | ONEDNN_OPERATIONS | {"covariance", "grad_bias"}


def is_made_by_intel() -> bool:
    """Whether this is a CPU of Intel's, where MKL's backward products are faster than oneDNN's."""
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
if HAS_ONEDNN and getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)():
    ONEDNN_DTYPES.add(torch.bfloat16)

HAS_TRITON = find_spec("triton") is not None
has_cpp = False
"""Whether compiled C++ kernels were loaded; `announce_cpp` sets it."""
triton_is_correct: dict[int | None, bool] = {}
"""Whether the Triton kernels agree with torch, by the number of the GPU. self_check.py fills it."""

# Private functions of torch that have no public counterpart. If a version of torch lacks one, the default says that
# nothing unusual is going on.
count_dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
get_tracing_state: Callable[[], object] = getattr(torch._C, "_get_tracing_state", lambda: None)
count_function_modes: Callable[[], int] = getattr(torch._C, "_len_torch_function_stack", lambda: 0)
get_function_modes: Callable[[], list] = getattr(torch.overrides, "_get_current_function_mode_stack", list)
is_in_fx: Callable[[], bool] = getattr(torch.fx._symbolic_trace, "is_fx_symbolic_tracing", lambda: False)
is_in_functorch: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
has_storage: Callable[[Tensor], bool] = getattr(torch._C, "_has_storage", lambda x: True)

_forced: Kernels = "auto"
_forced_here = threading.local()
_without: frozenset[str] = frozenset()

BATCHNORMS = nn.modules.batchnorm._BatchNorm
FORM = {
    nn.Linear: ("bias",),
    nn.LayerNorm: ("bias",),
    nn.GELU: ("approximate",),
    nn.Conv2d: ("bias", "kernel_size", "stride", "padding", "padding_mode", "dilation", "groups"),
}
"""The options of a part that the kernels rely on."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS: tuple[dict, ...] = tuple(getattr(modules, f"_global{name}", {}) for name in HOOKS)


@contextmanager
def forced(wanted: Kernels) -> Iterator[None]:
    """Force the form of all XCiT layers in this context, in all threads of the process.

    Args:
        wanted: "plain" runs the plain form, which second and forward-mode derivatives need. "fast" runs the fast form
            wherever it is possible, on a GPU with torch's own kernels. "triton" is "fast" with the Triton kernels.
            "auto" is the default: like "fast", with the Triton kernels where self_check.py found that they agree.
    """
    global _forced
    if wanted not in KINDS:
        raise InputError(f"kernels={wanted!r}: must be one of {', '.join(KINDS)}")
    before, _forced = _forced, wanted
    try:
        yield
    finally:
        _forced = before


@contextmanager
def forced_in_this_thread(wanted: Kernels) -> Iterator[None]:
    """Like `forced`, but in the current thread only, where it has precedence. For autograd's threads."""
    before, _forced_here.kernels = getattr(_forced_here, "kernels", None), wanted
    try:
        yield
    finally:
        _forced_here.kernels = before


def forced_kernels() -> Kernels:
    """What is forced in this thread; "auto" by default."""
    return getattr(_forced_here, "kernels", None) or _forced


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


def runs_fast_form(layer: nn.Module, x: Tensor) -> bool:
    """Whether the layer runs its fast form on x."""
    return allows_fast_operations(x) and is_unmodified(layer)


def allows_fast_operations(x: Tensor) -> bool:
    """Whether anything but plain torch operations may run on x.

    False if "plain" is forced, and in fp16, where sums over the tokens overflow. False under tools that need to see
    PyTorch's operations: torch.export, torch.jit, torch.fx, torch.func, and modes such as FLOP counters and fake
    tensors. False in code that torch.compile compiles for a GPU, because its own kernels are faster there.
    """
    if forced_kernels() == "plain" or isinstance(x, torch.fx.Proxy):
        return False
    device = "cpu" if x.is_cpu else "cuda"
    if not (x.is_cpu or x.is_cuda) or x.dtype == torch.float16:
        return False
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        return False
    if is_compiling():
        # In torch 2.11 the public torch.compiler.is_exporting is true in torch.compile, too.
        return device == "cpu" and not getattr(torch.compiler, "_is_exporting_flag", False)
    return not is_observed()


def may_fold(x: Tensor) -> bool:
    """Whether a call on x may use tensors that were derived from the parameters, folded weights for example.

    False under compilers, tracers and torch.func, which need to see how the output depends on the parameters, and under
    global hooks, which FLOP counters use. True in fp16: see `overflows`.
    """
    if is_compiling() or is_observed() or is_in_fx() or forced_kernels() == "plain" or any(GLOBAL_HOOKS):
        return False
    return allows_fast_operations(x) or compute_dtype(x) == torch.float16


def overflows(x: Tensor) -> bool:
    """Whether sums over the tokens overflow in the type of x."""
    return x.dtype == torch.float16


def without_autocast(x: Tensor) -> AbstractContextManager:
    """A context without autocast on the device of x."""
    return torch.autocast(x.device.type, enabled=False)


def compiles_whole_model(x: Tensor) -> bool:
    """Whether to compile a stem and class attention with the parameter x: on a CPU that takes 20 s and gains 1 %."""
    return x.is_cuda


def is_compiling() -> bool:
    """Whether torch.compile or torch.export traces this call."""
    return torch.compiler.is_compiling()


def is_observed() -> bool:
    """Whether torch.jit.trace, torch.func or a mode of PyTorch's sees each operation of this call."""
    if count_dispatch_modes() > 0 or get_tracing_state() is not None or is_in_functorch():
        return True
    return count_function_modes() > 0 and any(not isinstance(mode, DeviceContext) for mode in get_function_modes())


def is_unmodified(layer: nn.Module) -> bool:
    """Whether the layer has the parts that it was made with (not LoRA, quantization …), without hooks on them."""
    if parts_of(layer) != getattr(layer, "original_parts", None) or any(GLOBAL_HOOKS):
        return False
    return not any(has_hooks(part) for part in layer.modules() if part is not layer)


def has_hooks(part: nn.Module) -> bool:
    """Whether the module has hooks, or a `forward` that replaces that of its class."""
    return "forward" in vars(part) or any(getattr(part, name) for name in HOOKS)


def parts_of(layer: nn.Module) -> tuple[object, ...]:
    """The types and options of the layer's parts, as far as the kernels rely on them.

    A layer stores this as `original_parts` when it is made. A layer without it, from an older pickle, runs its plain
    form. BatchNorms are left out: operations call them as modules unless they are ordinary nn.BatchNorm2d.
    """
    return tuple(
        (name, type(part), *(form_of(part, key) for key in FORM.get(type(part), ())))
        for name, part in layer.named_modules()
        if part is not layer and not isinstance(part, BATCHNORMS)
    )


def form_of(part: nn.Module, key: str) -> object:
    value = getattr(part, key)
    return value is not None if key == "bias" else value


def announce_cpp(loaded: bool) -> None:
    """Called by cpu/library.py to say whether it loaded the C++ kernels."""
    global has_cpp
    has_cpp = loaded


def backend_for(operation: str, x: Tensor, *others: Tensor | None, fits: Fits | None = None) -> Backend:
    """Which implementation of the operation runs on these tensors. None stands for an optional one that is missing."""
    if operation in _without or not allows_fast_operations(x):
        return "torch"
    backend: Backend = "torch"
    if runs_triton(x):
        backend = "triton" if operation in TRITON else "torch"
    elif runs_on_cpu(operation, x, *others):
        backend = "cpu"
    if backend != "torch" and fits and not fits(x, *others, backend=backend, compiled=is_compiling()):
        return "torch"
    return backend


def runs_triton(x: Tensor) -> bool:
    """Whether Triton kernels run on x."""
    if not x.is_cuda or not HAS_TRITON or x.dtype not in (torch.float32, torch.bfloat16) or not is_ordinary(x):
        return False
    forced = forced_kernels()
    return forced == "triton" or (forced == "auto" and triton_is_correct.get(x.device.index, False))


def awaits_self_check(images: Tensor) -> bool:
    """Whether Triton kernels could run on the images, but self_check.py has not checked their GPU yet."""
    if not HAS_TRITON or forced_kernels() != "auto" or not allows_fast_operations(images) or not images.is_cuda:
        return False
    checked = images.device.index in triton_is_correct
    return not checked and is_ordinary(images) and not torch.cuda.is_current_stream_capturing()


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
    """Whether x is a plain tensor with memory: not a fake or distributed tensor, and of no other subclass."""
    return type(x) in (Tensor, nn.Parameter) and has_storage(x)


def allows_covariance(x: Tensor) -> bool:
    """Whether attention may go through the covariance of the tokens. Its norms are too inexact in bf16."""
    if "covariance" in _without or not allows_fast_operations(x):
        return False
    return x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(x.device.type)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which autocast computes products with x: the type of x without autocast, and in fp64."""
    device = x.device.type
    by_autocast = x.dtype != torch.float64 and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if by_autocast else x.dtype
