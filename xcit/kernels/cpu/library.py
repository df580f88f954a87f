"""Loads the C++ kernels (*.cpp), calls them, and makes them operators that compiled code calls.

pip compiles the kernels for x86 CPUs where it finds a compiler: _kernels_avx2 and _kernels_avx512. Where they are
missing, torch's operations run. The wrappers in this folder take what dispatch.py and the `fits` of each of them allow.
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
"""The kernels take so many numbers at a time: the number of channels is a multiple of it."""

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
    """Call a C++ function. A tensor is passed as a pointer to its memory: its strides are the caller's business."""
    assert LIBRARY is not None
    getattr(LIBRARY, function)(*map(to_c, arguments))


def call_dense(function: str, *arguments: Tensor | int | float | None) -> None:
    """Call a C++ function with copies of tensors that are not contiguous. Outputs have to be contiguous."""
    call(function, *(given.contiguous() if isinstance(given, Tensor) else given for given in arguments))


def to_c(argument: Tensor | int | float | None) -> Any:
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return ctypes.c_void_p(None if argument is None else argument.data_ptr())


def is_dense(x: Tensor) -> bool:
    """Whether x fills its memory without gaps, as it is or with its channels last."""
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


def custom_op(name: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function of tensors, without a graph, so that compiled code calls it as the operator `name`.

    torch.compile does not look into it. Eager code calls the function itself: an operator takes tens of microseconds
    more. Arguments and results are of types that torch.library knows. The function changes no argument, and returns
    neither an argument nor a view of one.

    fake: takes the same arguments and returns empty tensors with the shapes, strides and types of the results.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        operator = torch.library.custom_op(name, function, mutates_args=())
        operator.register_fake(fake)

        @functools.wraps(function)
        def run(*arguments: Any) -> Any:
            return (operator if is_compiling() else function)(*arguments)

        return run

    return decorate
