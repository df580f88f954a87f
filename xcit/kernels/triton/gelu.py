"""GELU in Triton: x P(x), P the normal distribution."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import device_of

VALUES = 1024
"""How many values a program holds."""


def gelu_backward(x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """(gelu(x), the gradient of x), given the gradient of gelu(x)."""
    x, gradient = x.contiguous(), gradient.contiguous()
    activated, of_x = torch.empty_like(x), torch.empty_like(x)
    with device_of(x):
        gelu_backward_kernel[(triton.cdiv(x.numel(), VALUES),)](x, gradient, activated, of_x, x.numel(), VALUES)
    return activated, of_x


@triton.jit
def gelu_backward_kernel(
    x: tl.tensor, gradient: tl.tensor, activated: tl.tensor, of_x: tl.tensor, count: int, tile: tl.constexpr
) -> None:
    at = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    value = tl.load(x + at, at < count, other=0.0).to(tl.float32)
    below, density = normal(value)
    tl.store(activated + at, value * below, at < count)
    slope = below + value * density
    tl.store(of_x + at, tl.load(gradient + at, at < count, other=0.0).to(tl.float32) * slope, at < count)


@triton.jit
def normal(x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The normal distribution and its density at x; one exponential serves both.

    The distribution by Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26, to 1e-7.
    """
    bell = tl.exp(-0.5 * x * x)
    t = 1 / (1 + 0.23164189 * tl.abs(x))
    tail = 1.061405429 * t - 1.453152027
    tail = tail * t + 1.421413741
    tail = tail * t - 0.284496736
    tail = tail * t + 0.254829592
    tail = 0.5 * tail * t * bell
    return tl.where(x < 0, tail, 1 - tail), 0.3989422804014327 * bell
