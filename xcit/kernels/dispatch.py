"""Plain or fast: decided here, for every layer and every call, from what is asked of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from ..errors import InputError

Kernels = Literal["auto", "plain", "fast", "triton"]
KINDS: tuple[Kernels, ...] = ("auto", "plain", "fast", "triton")

_kind: Kernels = "auto"

verdicts: dict[int | None, bool] = {}
"""Whether Triton's kernels agree with torch's, by the number of the GPU; self_check.py finds out."""

HAS_TRITON = find_spec("triton") is not None

BATCHNORMS = nn.modules.batchnorm._BatchNorm
FORM = {
    nn.Linear: ("bias",),
    nn.LayerNorm: ("bias",),
    nn.GELU: ("approximate",),
    nn.Conv2d: ("bias", "kernel_size", "stride", "padding", "padding_mode", "dilation", "groups"),
}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = tuple(f"_global{name}" for name in HOOKS)


@contextmanager
def forced(wanted: Kernels) -> Iterator[None]:
    """Within it every XCiT layer runs its "plain" form, or its "fast" one wherever that can be; "auto" chooses.

    "triton" is the fast form with the GPU's kernels where they can run, "fast" is without them: torch's everywhere.
    "auto" runs them where they were found to agree with torch's.

    Second derivatives and forward-mode derivatives need "plain". It holds for all threads of the process.
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
    """What is forced where this is called, or "auto"."""
    return _kind


def chosen(layer: nn.Module, x: Tensor) -> bool:
    """Whether the layer is to run its fast form on x."""
    if _kind == "plain" or not possible(x):
        return False
    return untouched(layer)


def possible(x: Tensor) -> bool:
    """fp16 overflows in products over the tokens; tracers and functorch want operations that they know."""
    device = x.device.type
    if device not in ("cpu", "cuda"):
        return False
    cast_to = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if torch.float16 in (x.dtype, cast_to):
        return False
    if torch.compiler.is_compiling():
        return not is_exporting()
    return torch._C._get_tracing_state() is None and not torch._C._are_functorch_transforms_active()


def is_exporting() -> bool:
    """Whether torch.export is at work. torch.compiler.is_exporting tells so inside torch.compile too, in torch 2.11."""
    return torch.compiler._is_exporting_flag


def by_triton(x: Tensor) -> bool:
    """Whether a kernel of the fast form is to hand x over to its twin in Triton."""
    if _kind in ("plain", "fast") or x.device.type != "cuda" or x.dtype not in (torch.float32, torch.bfloat16):
        return False
    if not HAS_TRITON or not possible(x) or not (torch.compiler.is_compiling() or is_ordinary(x)):
        return False
    return _kind == "triton" or verdicts.get(x.device.index, False)


def by_triton_uncompiled(x: Tensor) -> bool:
    """The same where the compiler has no need of a twin: it makes such a pass together with those around it."""
    return not torch.compiler.is_compiling() and by_triton(x)


def is_ordinary(x: Tensor) -> bool:
    """Whether x is no stand-in for a tensor: a fake one, one of several devices, one that gradients are mapped over."""
    return type(x) in (Tensor, nn.Parameter) and torch._C._has_storage(x)


def untouched(layer: nn.Module) -> bool:
    """Whether the layer's parts are those that it was made with, and nobody listens to them.

    A part may have been replaced by one that does something else: LoRA, quantisation, another activation.
    """
    if parts_of(layer) != getattr(layer, "made_of", None) or any(getattr(modules, name) for name in GLOBAL_HOOKS):
        return False
    return not any(is_watched(part) for part in layer.modules() if part is not layer)


def is_watched(part: nn.Module) -> bool:
    """Whether it has hooks, or a `forward` of its own in the place of its kind's."""
    return "forward" in vars(part) or any(getattr(part, name) for name in HOOKS)


def parts_of(layer: nn.Module) -> tuple[object, ...]:
    """What the kernels rely on: the kinds of the parts and their form. A layer notes it as `made_of` when it is made;
    without it, as in a file from before, it is not known to be untouched.

    BatchNorm is not among them: the kernels call it where it is not the ordinary one.
    """
    return tuple(
        (name, type(part), *(form_of(part, key) for key in FORM.get(type(part), ())))
        for name, part in layer.named_modules()
        if part is not layer and not isinstance(part, BATCHNORMS)
    )


def form_of(part: nn.Module, key: str) -> object:
    value = getattr(part, key)
    return value is not None if key == "bias" else value
