"""GELU in Triton: x P(x), with P the normal distribution. Its backward pass, and its values with their statistics."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import device_of

VALUES = 1024
"""Values of a program of the backward pass."""
TOKENS, CHANNELS = 64, 64
"""Tokens and channels of a program of the statistics. It computes one mean of its tokens for each channel."""


def gelu_backward(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """(gelu(x), the gradient of x), given the gradient of gelu(x)."""
    x, grad = x.contiguous(), grad.contiguous()
    activated, grad_x = torch.empty_like(x), torch.empty_like(x)
    with device_of(x):
        gelu_backward_kernel[(triton.cdiv(x.numel(), VALUES),)](x, grad, activated, grad_x, x.numel(), VALUES)
    return activated, grad_x


def gelu_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """gelu(x), and the mean and biased variance of its channels, (C,), in fp32.

    Those of parts of the tokens are computed first, then merged: this avoids cancellation.
    """
    x = x.contiguous()
    num_tokens, C = x.shape[0] * x.shape[1], x.shape[-1]
    programs = triton.cdiv(num_tokens, TOKENS)
    activated, mean = torch.empty_like(x), x.new_empty(C, dtype=torch.float32)
    variance = torch.empty_like(mean)
    partial = x.new_empty(2, programs, C, dtype=torch.float32)
    with device_of(x):
        gelu_statistics_kernel[(programs, triton.cdiv(C, CHANNELS))](
            x, activated, partial, num_tokens, C, TOKENS, CHANNELS
        )
        merge_kernel[(triton.cdiv(C, 16),)](partial, mean, variance, num_tokens, programs, C, TOKENS, 16)
    return activated, mean, variance


@triton.jit
def gelu_backward_kernel(
    x: tl.tensor, grad: tl.tensor, activated: tl.tensor, grad_x: tl.tensor, num_values: int, tile: tl.constexpr
) -> None:
    at = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    value = tl.load(x + at, at < num_values, other=0.0).to(tl.float32)
    below, density = normal_distribution(value)
    tl.store(activated + at, value * below, at < num_values)
    slope = below + value * density
    tl.store(grad_x + at, tl.load(grad + at, at < num_values, other=0.0).to(tl.float32) * slope, at < num_values)


@triton.jit
def normal_distribution(x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The normal distribution and its density at x, from one exponential.

    After Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26, with an error below 1e-7.
    """
    bell = tl.exp(-0.5 * x * x)
    t = 1 / (1 + 0.23164189 * tl.abs(x))
    tail = 1.061405429 * t - 1.453152027
    tail = tail * t + 1.421413741
    tail = tail * t - 0.284496736
    tail = tail * t + 0.254829592
    tail = 0.5 * tail * t * bell
    return tl.where(x < 0, tail, 1 - tail), 0.3989422804014327 * bell


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
    """gelu(x) of one tile of tokens, its mean, and the sum of squared distances from that mean."""
    program = tl.program_id(0).to(tl.int64)
    token = program * tile + tl.arange(0, tile)
    channel = tl.program_id(1) * tile_channels + tl.arange(0, tile_channels)
    there = (token < tokens)[:, None] & (channel < channels)[None, :]
    at = token[:, None] * channels + channel[None, :]
    value = tl.load(x + at, there, other=0.0).to(tl.float32)
    below, _ = normal_distribution(value)
    value *= below
    tl.store(activated + at, value, there)
    average = tl.sum(value, 0) / tl.minimum(tokens - program * tile, tile)
    centered = tl.where(there, value - average[None, :], 0.0)
    partial += program * channels + channel
    tl.store(partial, average, channel < channels)
    partial += tl.num_programs(0).to(tl.int64) * channels
    tl.store(partial, tl.sum(centered * centered, 0), channel < channels)


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
    """Mean and variance of all tokens from those of the parts, of `tile` tokens each; the last has the rest."""
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
    """The values of 128 parts, (128, channels), and the number of tokens of each part, (128, 1)."""
    part = start + tl.arange(0, 128)
    there = (part < parts)[:, None] & (channel < channels)[None, :]
    values = tl.load(partial + part[:, None] * channels + channel[None, :], there, other=0.0)
    return values, tl.minimum(tl.maximum(tokens - part * tile, 0), tile)[:, None].to(tl.float32)
