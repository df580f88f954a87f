"""For all Triton kernels: the device to launch on, and loading a parameter of the channels."""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor


def device_of(x: Tensor) -> AbstractContextManager:
    """A context in which the device of x is the current one, on which Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@triton.jit
def load_channels(parameter: tl.tensor, channel: tl.tensor, channels: int) -> tl.tensor:
    """A parameter's values for these channels, (1, channels), in fp32."""
    return tl.load(parameter + channel, channel < channels, other=0.0).to(tl.float32)[None, :]
