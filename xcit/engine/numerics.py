"""Precision (autocast and gradient scaling) and determinism."""

import os
import warnings
from contextlib import AbstractContextManager

import torch

from ..errors import InputError, Notice

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def warn_of_slow_precision(device: torch.device, precision: str, key: str) -> None:
    """Print a note if the precision is slow on the device. `key` is the configuration key of the precision."""
    if device.type == "cpu" and precision == "fp16":
        warnings.warn(
            f"{key}=fp16: is several times slower than fp32 on a CPU, which has few instructions for it; "
            f"{key}=fp32 or bf16 is faster here",
            Notice,
            stacklevel=2,
        )


def grad_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Scales fp16 gradients so that small ones survive; for other types it changes nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def require_determinism(required: bool, device: torch.device, nondeterministic: str = "") -> None:
    """Refuse operations whose results vary from run to run; on a GPU that costs speed.

    nondeterministic: a task's. PyTorch would refuse the operation on a GPU in the middle of the run.

    Raises:
        InputError: the task needs this operation, and the device is a GPU.
    """
    if required and nondeterministic and device.type == "cuda":
        raise InputError(f"deterministic=true: {nondeterministic}, which has no deterministic form on a GPU")
    if required:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # makes cuBLAS deterministic
    torch.use_deterministic_algorithms(required)
