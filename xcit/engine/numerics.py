"""fp32, bf16 or fp16: what is cast, what is scaled; and whether results may vary from run to run."""

import os
from contextlib import AbstractContextManager

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def grad_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """fp16 gradients are scaled so that small ones survive; otherwise the scaler passes everything through."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def require_determinism(required: bool) -> None:
    """Refuse operations whose results vary from run to run; on a GPU that costs speed."""
    if required:
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # cuBLAS is deterministic with a workspace of its own
    torch.use_deterministic_algorithms(required)
