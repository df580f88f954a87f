"""What autocast asks for, where an operation is our own and autocast does not know it."""

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which the products with x are to be computed. Autocast leaves fp64 alone."""
    device = x.device.type
    if x.dtype == torch.float64:
        return x.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
