"""Which device a command uses, and what differs between devices outside the kernels."""

import os

import torch
from torch import Tensor

from .errors import InputError

VARIABLE = "XCIT_DEVICE"
"""The environment variable that asks for a type of device: "cpu", "cuda" or "mps"."""

MEMORY_ERRORS = ("can't allocate memory", "not enough memory", "MPS backend out of memory")
"""Parts of torch's messages on a CPU and on MPS, which are RuntimeErrors."""


def default_device() -> torch.device:
    """A GPU if there is one: "cuda", or Apple's "mps". Otherwise the CPU. XCIT_DEVICE asks for another one.

    Raises:
        InputError: XCIT_DEVICE names a device that is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    found = [name for name, is_there in there.items() if is_there]
    asked = os.environ.get(VARIABLE) or found[0]
    if asked not in found:
        raise InputError(f"{VARIABLE}={asked}: must be {' or '.join(found)} on this machine")
    return torch.device(asked)


def name_of(device: torch.device) -> str | None:
    """The name of a GPU; None for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple MPS" if device.type == "mps" else None


def moved(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. A copy to CUDA returns at once, if the memory is pinned.

    Such a copy to MPS may read memory that is in use for something else by then (pytorch issue 189690).
    """
    return x.to(device, non_blocking=device.type == "cuda")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is short, on any device. Only a GPU's has a type of its own."""
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or (isinstance(error, RuntimeError) and any(part in str(error) for part in MEMORY_ERRORS))


def device_for_float64(device: torch.device) -> torch.device:
    """Where to compute in float64 what is on the device: there; on the CPU for MPS, which has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def in_float64(x: Tensor) -> Tensor:
    """The tensor in float64, on `device_for_float64(x.device)`."""
    return x.to(device_for_float64(x.device)).double()
