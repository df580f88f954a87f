"""What every kernel in Triton needs: the device that it is launched on, and the parameters of its channels."""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor


def device_of(x: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, which may not be that of x."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@triton.jit
def of_channels(parameter: tl.tensor, channel: tl.tensor, channels: int) -> tl.tensor:
    """A parameter's values, (1, channels), in fp32."""
    return tl.load(parameter + channel, channel < channels, other=0.0).to(tl.float32)[None, :]
