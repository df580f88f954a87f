"""LayerNorm there and back in Triton, and the GELU with the statistics of the BatchNorm behind it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..custom_op import opaque
from .gelu import normal
from .launch import device_of, of_channels

TOKENS, CHANNELS = 64, 64
"""How many tokens and channels a program of the GELU holds. Its tokens share one partial mean."""
VALUES = 4096
"""How many values a program of the layer norm holds: whole tokens."""
PARTS = 1024
"""How many programs share the tokens in the backward pass of the layer norm: each has sums of its own."""


def token_statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and rstd of every token, B · N of each, in fp32."""
    if torch.compiler.is_compiling():  # the compiler makes them in the pass that makes x
        _, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        return mean, rstd
    return launch_layer_norm(x, None, None, None, eps)


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The layer norm of x in dtype, and mean and rstd of every token, (B, N), in fp32."""
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


def of_layer_norm(of_normed: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor) -> Tensor:
    """The gradient of x, given that of the layer norm of x."""
    if torch.compiler.is_compiling():
        given = of_normed.to(x.dtype), x, x.shape[-1:], mean, rstd, scale, None
        return torch.ops.aten.native_layer_norm_backward(*given, [True, False, False])[0]
    of_x, _ = launch_of_layer_norm(of_normed, x, mean, rstd, scale, None, sums_wanted=False)
    return of_x


def layer_norm_backward(
    of_normed: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, to which the residual is added, of scale and shift, given that of the layer norm of x."""
    of_x, sums = launch_of_layer_norm(of_normed, x, mean, rstd, scale, residual, sums_wanted=True)
    assert sums is not None
    of_scale, of_shift = sums.sum(0).to(scale.dtype)
    return of_x, of_scale, of_shift


def launch_of_layer_norm(
    of_normed: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor,
    residual: Tensor | None,
    sums_wanted: bool,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of x, with the residual, and the parts of those of scale and shift, (parts, 2, C)."""
    of_normed, x = of_normed.contiguous(), x.contiguous()
    residual = None if residual is None else residual.contiguous()
    of_x = torch.empty_like(x)
    programs, padded, tile = whole_tokens(x)
    programs = min(programs, PARTS)
    sums = x.new_empty(programs, 2, x.shape[-1], dtype=torch.float32) if sums_wanted else None
    with device_of(x):
        of_layer_norm_kernel[(programs,)](
            of_normed, x, mean, rstd, scale, residual, of_x, sums, mean.numel(), x.shape[-1], padded, tile
        )
    return of_x, sums


def whole_tokens(x: Tensor) -> tuple[int, int, int]:
    """How many programs share the tokens, C padded to a power of two, and the tokens of a program."""
    padded = triton.next_power_of_2(x.shape[-1])
    tile = max(1, VALUES // padded)
    return triton.cdiv(x.numel() // x.shape[-1], tile), padded, tile


def like_gelu_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.shape[-1], dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.contiguous_format), mean, torch.empty_like(mean)


@opaque("xcit::gelu_statistics_by_triton", like_gelu_statistics)
def gelu_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """gelu(x), and the mean and biased variance of every channel, (C,), in fp32; of parts first, so nothing cancels."""
    x = x.contiguous()
    count, C = x.shape[0] * x.shape[1], x.shape[-1]
    programs = triton.cdiv(count, TOKENS)
    activated, mean, variance = like_gelu_statistics(x)
    partial = x.new_empty(2, programs, C, dtype=torch.float32)
    with device_of(x):
        gelu_statistics_kernel[(programs, triton.cdiv(C, CHANNELS))](x, activated, partial, count, C, TOKENS, CHANNELS)
        merge_kernel[(triton.cdiv(C, 16),)](partial, mean, variance, count, programs, C, TOKENS, 16)
    return activated, mean, variance


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
    """normed, scale and shift may be missing: then the statistics alone."""
    token = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    channel = tl.arange(0, padded)
    there = (token < tokens)[:, None] & (channel < channels)[None, :]
    at = token[:, None] * channels + channel[None, :]
    value = tl.load(x + at, there, other=0.0).to(tl.float32)
    average = tl.sum(value, 1) / channels
    centred = tl.where(there, value - average[:, None], 0.0)
    inverse = 1 / tl.sqrt_rn(tl.sum(centred * centred, 1) / channels + eps)
    tl.store(mean + token, average, token < tokens)
    tl.store(rstd + token, inverse, token < tokens)
    if normed is not None:
        scaled = centred * inverse[:, None] * of_channels(scale, channel, channels)
        tl.store(normed + at, scaled + of_channels(shift, channel, channels), there)


@triton.jit
def of_layer_norm_kernel(
    of_normed: tl.tensor,
    x: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    scale: tl.tensor,
    residual: tl.tensor,
    of_x: tl.tensor,
    sums: tl.tensor,
    tokens: int,
    channels: int,
    padded: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """The gradient less its mean and less its share along x̂: neither can change what the norm puts out.

    residual and sums may be missing.
    """
    channel = tl.arange(0, padded)
    weight = of_channels(scale, channel, channels)
    of_scale = tl.zeros((tile, padded), tl.float32)
    of_shift = tl.zeros((tile, padded), tl.float32)
    for start in range(tl.program_id(0) * tile, tokens, tl.num_programs(0) * tile):
        token = start + tl.arange(0, tile)
        there = (token < tokens)[:, None] & (channel < channels)[None, :]
        at = token.to(tl.int64)[:, None] * channels + channel[None, :]
        average = tl.load(mean + token, token < tokens, other=0.0)[:, None]
        inverse = tl.load(rstd + token, token < tokens, other=0.0)[:, None]
        normed = (tl.load(x + at, there, other=0.0).to(tl.float32) - average) * inverse
        gradient = tl.load(of_normed + at, there, other=0.0).to(tl.float32)
        of_scale += gradient * normed
        of_shift += gradient
        gradient *= weight
        along = tl.sum(gradient * normed, 1)[:, None] / channels
        found = inverse * (gradient - tl.sum(gradient, 1)[:, None] / channels - normed * along)
        if residual is not None:
            found += tl.load(residual + at, there, other=0.0).to(tl.float32)
        tl.store(of_x + at, found, there)
    if sums is not None:
        sums += tl.program_id(0).to(tl.int64) * 2 * channels + channel
        tl.store(sums, tl.sum(of_scale, 0), channel < channels)
        tl.store(sums + channels, tl.sum(of_shift, 0), channel < channels)


@triton.jit
def gelu_statistics_kernel(
    x: tl.tensor,
    activated: tl.tensor,
    partial: tl.tensor,
    tokens: int,
    channels: int,
    tile: tl.constexpr,
    tile_channels: tl.constexpr,
) -> None:
    """Of one tile of tokens gelu(x), its mean, and the sum of its squared distances from that mean."""
    program = tl.program_id(0).to(tl.int64)
    token = program * tile + tl.arange(0, tile)
    channel = tl.program_id(1) * tile_channels + tl.arange(0, tile_channels)
    there = (token < tokens)[:, None] & (channel < channels)[None, :]
    at = token[:, None] * channels + channel[None, :]
    value = tl.load(x + at, there, other=0.0).to(tl.float32)
    below, _ = normal(value)
    value *= below
    tl.store(activated + at, value, there)
    average = tl.sum(value, 0) / tl.minimum(tokens - program * tile, tile)
    centred = tl.where(there, value - average[None, :], 0.0)
    partial += program * channels + channel
    tl.store(partial, average, channel < channels)
    partial += tl.num_programs(0).to(tl.int64) * channels
    tl.store(partial, tl.sum(centred * centred, 0), channel < channels)


@triton.jit
def merge_kernel(
    partial: tl.tensor,
    mean: tl.tensor,
    variance: tl.tensor,
    tokens: int,
    parts: int,
    channels: int,
    tile: tl.constexpr,
    tile_channels: tl.constexpr,
) -> None:
    """Mean and variance of all tokens from those of the parts, which hold `tile` tokens each, the last what is left."""
    channel = tl.program_id(0) * tile_channels + tl.arange(0, tile_channels)
    total = tl.zeros((128, tile_channels), tl.float32)
    for start in range(0, parts, 128):
        average, count = load_parts(partial, start, tokens, parts, channel, channels, tile)
        total += count * average
    overall = tl.sum(total, 0) / tokens
    total = tl.zeros((128, tile_channels), tl.float32)
    for start in range(0, parts, 128):
        average, count = load_parts(partial, start, tokens, parts, channel, channels, tile)
        squares, _ = load_parts(partial + parts * channels, start, tokens, parts, channel, channels, tile)
        total += squares + count * (average - overall[None, :]) * (average - overall[None, :])
    tl.store(mean + channel, overall, channel < channels)
    tl.store(variance + channel, tl.sum(total, 0) / tokens, channel < channels)


@triton.jit
def load_parts(
    partial: tl.tensor, start: int, tokens: int, parts: int, channel: tl.tensor, channels: int, tile: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The values of 128 parts, (128, channels), and how many tokens each part holds, (128, 1)."""
    part = start + tl.arange(0, 128)
    there = (part < parts)[:, None] & (channel < channels)[None, :]
    values = tl.load(partial + part[:, None] * channels + channel[None, :], there, other=0.0)
    return values, tl.minimum(tl.maximum(tokens - part * tile, 0), tile)[:, None].to(tl.float32)
