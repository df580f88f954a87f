"""The statistics of LayerNorm and of the BatchNorm behind a GELU in Triton, and the way back through LayerNorm."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_cross_covariance import device_of
from .triton_rows import normal_below, of_channels

TOKENS, CHANNELS = 64, 64
"""How many tokens and channels a program of BatchNorm holds. Its tokens share one partial mean."""
VALUES = 4096
"""How many values a program of the layer norm holds: whole tokens."""


def token_statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and rstd of every token, (B, N), in fp32."""
    mean = x.new_empty(x.shape[:2], dtype=torch.float32)
    rstd = torch.empty_like(mean)
    programs, padded, tile = whole_tokens(x)
    with device_of(x):
        token_statistics_kernel[programs](x, mean, rstd, eps, mean.numel(), x.shape[-1], padded, tile)
    return mean, rstd


def of_layer_norm(of_normed: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor) -> Tensor:
    of_x = torch.empty_like(x)
    programs, padded, tile = whole_tokens(x)
    with device_of(x):
        of_layer_norm_kernel[programs](of_normed, x, mean, rstd, scale, of_x, mean.numel(), x.shape[-1], padded, tile)
    return of_x


def whole_tokens(x: Tensor) -> tuple[tuple[int], int, int]:
    """How many programs share the tokens, C padded to a power of two, and the tokens of a program."""
    padded = triton.next_power_of_2(x.shape[-1])
    tile = max(1, VALUES // padded)
    return (triton.cdiv(x.shape[0] * x.shape[1], tile),), padded, tile


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of gelu(x) in every channel, (C,), in fp32; of parts first, so that nothing cancels."""
    count, C = x.shape[0] * x.shape[1], x.shape[-1]
    programs = triton.cdiv(count, TOKENS)
    partial = x.new_empty(2, programs, C, dtype=torch.float32)
    with device_of(x):
        channel_statistics_kernel[(programs, triton.cdiv(C, CHANNELS))](x, partial, count, C, TOKENS, CHANNELS)
    means, squares = partial
    counts = (count - TOKENS * torch.arange(programs, device=x.device)[:, None]).clamp_max(TOKENS)
    mean = (counts * means).sum(0) / count
    return mean, (squares + counts * (means - mean).square()).sum(0) / count


@triton.jit
def token_statistics_kernel(
    x: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    eps: float,
    tokens: int,
    channels: int,
    padded: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    channel = tl.arange(0, padded)
    there = (token < tokens)[:, None] & (channel < channels)[None, :]
    value = tl.load(x + token[:, None] * channels + channel[None, :], there, other=0.0).to(tl.float32)
    average = tl.sum(value, 1) / channels
    centred = tl.where(there, value - average[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / channels
    tl.store(mean + token, average, token < tokens)
    tl.store(rstd + token, 1 / tl.sqrt_rn(variance + eps), token < tokens)


@triton.jit
def of_layer_norm_kernel(
    of_normed: tl.tensor,
    x: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    scale: tl.tensor,
    of_x: tl.tensor,
    tokens: int,
    channels: int,
    padded: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """The gradient less its mean and less its share along x̂: neither can change what the norm puts out."""
    token = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    channel = tl.arange(0, padded)
    there = (token < tokens)[:, None] & (channel < channels)[None, :]
    at = token[:, None] * channels + channel[None, :]
    average = tl.load(mean + token, token < tokens, other=0.0)[:, None]
    inverse = tl.load(rstd + token, token < tokens, other=0.0)[:, None]
    normed = (tl.load(x + at, there, other=0.0).to(tl.float32) - average) * inverse
    gradient = tl.load(of_normed + at, there, other=0.0).to(tl.float32) * of_channels(scale, channel, channels)
    along = tl.sum(gradient * normed, 1)[:, None] / channels
    tl.store(of_x + at, inverse * (gradient - tl.sum(gradient, 1)[:, None] / channels - normed * along), there)


@triton.jit
def channel_statistics_kernel(
    x: tl.tensor,
    partial: tl.tensor,
    tokens: int,
    channels: int,
    tile: tl.constexpr,
    tile_channels: tl.constexpr,
) -> None:
    """Of one tile of tokens the mean of gelu(x) and the sum of its squared distances from that mean."""
    program = tl.program_id(0).to(tl.int64)
    token = program * tile + tl.arange(0, tile)
    channel = tl.program_id(1) * tile_channels + tl.arange(0, tile_channels)
    there = (token < tokens)[:, None] & (channel < channels)[None, :]
    value = tl.load(x + token[:, None] * channels + channel[None, :], there, other=0.0).to(tl.float32)
    activated = value * normal_below(value)
    average = tl.sum(activated, 0) / tl.minimum(tokens - program * tile, tile)
    centred = tl.where(there, activated - average[None, :], 0.0)
    partial += program * channels + channel
    tl.store(partial, average, channel < channels)
    partial += tl.num_programs(0).to(tl.int64) * channels
    tl.store(partial, tl.sum(centred * centred, 0), channel < channels)
