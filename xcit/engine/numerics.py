"""Precision (autocast and gradient scaling) and determinism."""

import os
from contextlib import AbstractContextManager

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def grad_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Scales fp16 gradients so that small ones survive; for other types it changes nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def require_determinism(required: bool) -> None:
    """Refuse operations whose results vary from run to run; on a GPU that costs speed."""
    if required:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # makes cuBLAS deterministic
    torch.use_deterministic_algorithms(required)
