"""Plain or fast: decided here, for every layer and every call, from what is asked of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import InputError

Kernels = Literal["auto", "plain", "fast"]
KINDS: tuple[Kernels, ...] = ("auto", "plain", "fast")

_kind: Kernels = "auto"

# The modules whose arithmetic the kernels know. A subclass may do something else: LoRA, quantisation, a norm over all
# processes. (BatchNorm is called as it is where it is not this one.)
KNOWN = (nn.Linear, nn.LayerNorm, nn.Conv2d, nn.GELU)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def forced(kind: Kernels) -> Iterator[None]:
    """Within it every XCiT layer runs its "plain" form, or its "fast" one wherever that can be; "auto" chooses."""
    global _kind
    if kind not in KINDS:
        raise InputError(f"kernels={kind!r}: must be one of {', '.join(KINDS)}")
    before, _kind = _kind, kind
    try:
        yield
    finally:
        _kind = before


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
        return not torch.compiler.is_exporting()
    return torch._C._get_tracing_state() is None and not torch._C._are_functorch_transforms_active()


def untouched(layer: nn.Module) -> bool:
    """Whether the layer's parts are those that it was made with, and nobody listens to them."""
    return all(
        (type(part) in KNOWN or not isinstance(part, KNOWN)) and not any(getattr(part, name) for name in HOOKS)
        for part in layer.modules()
        if part is not layer
    )
