"""Loads the C++ kernels (*.cpp), calls them, and makes them operators that compiled code calls.

pip compiles the kernels for x86 CPUs if it finds a compiler: _kernels_avx2 and _kernels_avx512. If they are missing,
torch's operations run. The wrappers in this folder assume inputs that dispatch.py and `fits` have accepted.
"""

import ctypes
import functools
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..dispatch import INSTRUCTIONS, announce_cpp, is_compiling

TILE = 16
"""Kernels process 16 floats at a time; the number of channels must be a multiple of 16."""

FUNCTIONS = (
    "gelu",
    "gelu_backward",
    "moments",
    "batchnorm_gelu",
    "batchnorm_gelu_backward",
    "layer_norm_backward",
    "attend",
    "attend_backward",
    "norm_depthwise",
    "gelu_affine_depthwise",
    "gelu_affine_sums",
    "local_patch_backward",
    "local_patch",
)


def load() -> ctypes.CDLL | None:
    """The library for this CPU's instructions. None if it is missing, or an older one that lacks a function."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_kernels_{INSTRUCTIONS.lower()}{suffix}")
        if path.is_file():
            library = ctypes.CDLL(str(path))
            return library if all(hasattr(library, name) for name in FUNCTIONS) else None
    return None


LIBRARY = load()
announce_cpp(LIBRARY is not None)


def call(function: str, *arguments: Tensor | int | float | None) -> None:
    """Call a C++ function. A tensor is passed as a pointer to its memory. The caller must check its strides."""
    assert LIBRARY is not None
    getattr(LIBRARY, function)(*map(to_c, arguments))


def call_dense(function: str, *arguments: Tensor | int | float | None) -> None:
    """Call a C++ function with contiguous copies of its input tensors. Outputs must be contiguous."""
    call(function, *(given.contiguous() if isinstance(given, Tensor) else given for given in arguments))


def to_c(argument: Tensor | int | float | None) -> Any:
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return ctypes.c_void_p(None if argument is None else argument.data_ptr())


def is_dense(x: Tensor) -> bool:
    """Whether x is contiguous, as it is or with its channels last."""
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


def custom_op(name: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function of tensors, without a graph, so that compiled code calls it as the operator `name`.

    torch.compile does not trace the function. Eager code calls it directly, because an operator takes tens of
    microseconds longer. The types of arguments and results must be known to torch.library. The function must not change
    an argument, nor return one or a view of one.

    fake: takes the same arguments and returns empty tensors with the shapes, strides and types of the results.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        operator = torch.library.custom_op(name, function, mutates_args=())
        operator.register_fake(fake)

        return unless_compiled(operator)(function)

    return decorate


def unless_compiled(operator: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function of tensors, so that compiled code calls the operator in its place."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*arguments: Any) -> Any:
            return (operator if is_compiling() else function)(*arguments)

        return run

    return decorate
