"""LayerNorm forward and backward in Triton, each in one pass over the tokens."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import device_of, load_channels

VALUES = 4096
"""Values of a program: whole tokens."""
PARTS = 1024
"""The number of programs of the backward pass, at most. Each has its own sums over its tokens."""


def token_statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and rstd of every token, (B, N) each, in fp32."""
    return launch_layer_norm(x, None, None, None, eps)


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The norm of x in dtype, and the mean and rstd of every token, (B, N), in fp32."""
    normed = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    return normed, *launch_layer_norm(x, normed, scale, shift, eps)


def launch_layer_norm(
    x: Tensor, normed: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    mean = x.new_empty(x.shape[:-1], dtype=torch.float32)
    rstd = torch.empty_like(mean)
    programs, padded, tile = whole_tokens(x)
    with device_of(x):
        layer_norm_kernel[(programs,)](
            x, normed, mean, rstd, scale, shift, eps, mean.numel(), x.shape[-1], padded, tile
        )
    return mean, rstd


def layer_norm_grad_x(grad_normed: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor) -> Tensor:
    """The gradient of x, given that of its norm."""
    grad_x, _ = launch_layer_norm_backward(grad_normed, x, mean, rstd, scale, None, with_sums=False)
    return grad_x


def layer_norm_backward(
    grad_normed: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, with the residual added to it, of scale and of shift, given that of the norm of x."""
    grad_x, sums = launch_layer_norm_backward(grad_normed, x, mean, rstd, scale, residual, with_sums=True)
    assert sums is not None
    grad_scale, grad_shift = sums.sum(0).to(scale.dtype)
    return grad_x, grad_scale, grad_shift


def launch_layer_norm_backward(
    grad_normed: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor,
    residual: Tensor | None,
    with_sums: bool,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of x, with the residual added to it, and the sums of each program for scale and shift, (…, 2, C)."""
    grad_normed, x = grad_normed.contiguous(), x.contiguous()
    residual = None if residual is None else residual.contiguous()
    grad_x = torch.empty_like(x)
    programs, padded, tile = whole_tokens(x)
    programs = min(programs, PARTS)
    sums = x.new_empty(programs, 2, x.shape[-1], dtype=torch.float32) if with_sums else None
    with device_of(x):
        layer_norm_backward_kernel[(programs,)](
            grad_normed, x, mean, rstd, scale, residual, grad_x, sums, mean.numel(), x.shape[-1], padded, tile
        )
    return grad_x, sums


def whole_tokens(x: Tensor) -> tuple[int, int, int]:
    """The number of programs, C padded to a power of two, and the tokens of a program."""
    padded = triton.next_power_of_2(x.shape[-1])
    tile = max(1, VALUES // padded)
    return triton.cdiv(x.numel() // x.shape[-1], tile), padded, tile


@triton.jit
def layer_norm_kernel(
    x: tl.tensor,
    normed: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    eps: float,
    tokens: int,
    channels: int,
    padded: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """Without normed, scale and shift (None) it computes the statistics alone."""
    token = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    channel = tl.arange(0, padded)
    there = (token < tokens)[:, None] & (channel < channels)[None, :]
    at = token[:, None] * channels + channel[None, :]
    value = tl.load(x + at, there, other=0.0).to(tl.float32)
    average = tl.sum(value, 1) / channels
    centered = tl.where(there, value - average[:, None], 0.0)
    inverse = 1 / tl.sqrt_rn(tl.sum(centered * centered, 1) / channels + eps)
    tl.store(mean + token, average, token < tokens)
    tl.store(rstd + token, inverse, token < tokens)
    if normed is not None:
        scaled = centered * inverse[:, None] * load_channels(scale, channel, channels)
        tl.store(normed + at, scaled + load_channels(shift, channel, channels), there)


@triton.jit
def layer_norm_backward_kernel(
    grad_normed: tl.tensor,
    x: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    scale: tl.tensor,
    residual: tl.tensor,
    grad_x: tl.tensor,
    sums: tl.tensor,
    tokens: int,
    channels: int,
    padded: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """The gradient without its mean and without its component along x̂: both directions leave the output unchanged.

    residual and sums may be None.
    """
    channel = tl.arange(0, padded)
    weight = load_channels(scale, channel, channels)
    grad_scale = tl.zeros((tile, padded), tl.float32)
    grad_shift = tl.zeros((tile, padded), tl.float32)
    for start in range(tl.program_id(0) * tile, tokens, tl.num_programs(0) * tile):
        token = start + tl.arange(0, tile)
        there = (token < tokens)[:, None] & (channel < channels)[None, :]
        at = token.to(tl.int64)[:, None] * channels + channel[None, :]
        average = tl.load(mean + token, token < tokens, other=0.0)[:, None]
        inverse = tl.load(rstd + token, token < tokens, other=0.0)[:, None]
        normed = (tl.load(x + at, there, other=0.0).to(tl.float32) - average) * inverse
        grad = tl.load(grad_normed + at, there, other=0.0).to(tl.float32)
        grad_scale += grad * normed
        grad_shift += grad
        grad *= weight
        along = tl.sum(grad * normed, 1)[:, None] / channels
        found = inverse * (grad - tl.sum(grad, 1)[:, None] / channels - normed * along)
        if residual is not None:
            found += tl.load(residual + at, there, other=0.0).to(tl.float32)
        tl.store(grad_x + at, found, there)
    if sums is not None:
        sums += tl.program_id(0).to(tl.int64) * 2 * channels + channel
        tl.store(sums, tl.sum(grad_scale, 0), channel < channels)
        tl.store(sums + channels, tl.sum(grad_shift, 0), channel < channels)
