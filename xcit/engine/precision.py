"""fp32, bf16 or fp16: what is cast, and what is scaled."""

from contextlib import AbstractContextManager

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def grad_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """fp16 gradients are scaled so that small ones survive; otherwise the scaler passes everything through."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
