"""A 3 × 3 convolution of each channel by itself in Triton, with the norm before it in the same pass over the tokens.

A program walks down a strip of the map and applies the norm to what it loads; beyond the border of the image there is
zero, not the norm of zero.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..custom_op import opaque
from .gelu import normal
from .launch import device_of, of_channels
from .rows import input_row, load_row, normed_row, part, places, store_sums, taps

PART, WARPS = (16, 16, 64, 3), 2
"""Rows, columns and channels of a program's part of a map, how many rows are under way from memory at a time, and the
program's warps: the fastest on an H200."""
SUMS_PART, SUMS_WARPS = (16, 16, 16, 1), 1
"""The same where twelve sums of each place are kept in registers."""


def like(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


@opaque("xcit::convolve_by_triton", lambda x, weight, bias, grid, dtype, *_: like(x, dtype))
def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    grid: Sequence[int],
    dtype: torch.dtype,
    gelu: bool,
    norm: str,
    mean: Tensor | None,
    rstd: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> Tensor:
    """The convolution of what the norm makes of x, (B, N, C) → (B, N, C), and if so told a GELU of it.

    norm: "layer" or "batch", with the mean and rstd of each token or channel; "affine" scales and shifts alone; "none".
    """
    x = x.contiguous()
    y = torch.empty_like(x, dtype=dtype)
    parameters = mean, rstd, scale, shift
    with device_of(x):
        convolve_kernel[parts(x, grid, PART)](
            x, y, weight.contiguous(), bias, *parameters, *grid, x.shape[-1], gelu, norm, *PART, num_warps=WARPS
        )
    return y


@opaque("xcit::of_input_by_triton", lambda gradient, weight, grid, dtype, *_: like(gradient, dtype))
def of_input(
    gradient: Tensor,
    weight: Tensor,
    grid: Sequence[int],
    dtype: torch.dtype,
    x: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    slope: Tensor | None,
    of_scale: Tensor | None,
    of_shift: Tensor | None,
) -> Tensor:
    """The gradient of what is convolved; with x, that of the x whose GELU went through BatchNorm into it.

    slope: scale · rstd. of_scale, of_shift: their gradients, divided by B · N.
    """
    gradient = gradient.contiguous()
    x = None if x is None else x.contiguous()
    of_x = torch.empty_like(gradient, dtype=dtype)
    batchnorm = x, mean, rstd, slope, of_scale, of_shift
    with device_of(gradient):
        of_input_kernel[parts(gradient, grid, PART)](
            gradient, of_x, weight.contiguous(), *batchnorm, *grid, gradient.shape[-1], *PART, num_warps=WARPS
        )
    return of_x


def sums_over_taps(
    gradient: Tensor,
    x: Tensor,
    grid: Sequence[int],
    norm: str = "none",
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Σ gradient · x̂ and Σ gradient over every tap, as far as the tap is inside the image: (C, 1, 3, 3) each."""
    sums = partial_sums(gradient, x, grid, norm, mean, rstd).sum(0)
    of_taps, of_inside = sums.mT.reshape(2, x.shape[-1], 1, 3, 3)
    return of_taps, of_inside


def empty_sums(gradient: Tensor, x: Tensor, grid: Sequence[int], *_: Any) -> Tensor:
    return x.new_empty(parts(x, grid, SUMS_PART)[0], 2, 9, x.shape[-1], dtype=torch.float32)


@opaque("xcit::partial_sums_by_triton", empty_sums)
def partial_sums(
    gradient: Tensor, x: Tensor, grid: Sequence[int], norm: str, mean: Tensor | None, rstd: Tensor | None
) -> Tensor:
    """What every part of the maps adds to the sums over taps, (parts, 2, 9, C)."""
    gradient, x = gradient.contiguous(), x.contiguous()
    sums = empty_sums(gradient, x, grid)
    with device_of(x):
        sums_kernel[parts(x, grid, SUMS_PART)](
            gradient, x, sums, mean, rstd, *grid, x.shape[-1], norm, *SUMS_PART, num_warps=SUMS_WARPS
        )
    return sums


def parts(x: Tensor, grid: Sequence[int], size: tuple[int, int, int, int]) -> tuple[int, int]:
    """How many programs share the maps, and how many the channels."""
    B, _, C = x.shape
    rows, columns, channels, _ = size
    return B * -(-grid[0] // rows) * -(-grid[1] // columns), -(-C // channels)


@triton.jit
def convolve_kernel(
    x: tl.tensor,
    y: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    height: int,
    width: int,
    channels: int,
    gelu: tl.constexpr,
    norm: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_columns: tl.constexpr,
    tile_channels: tl.constexpr,
    stages: tl.constexpr,
) -> None:
    """A row of the input belongs to three of the output: the one above it is then complete, two are under way."""
    image, first, last, columns, channel = part(height, width, tile_rows, tile_columns, tile_channels)
    x += image * height * width * channels
    y += image * height * width * channels
    if norm == "layer":
        mean += image * height * width
        rstd += image * height * width
    if norm == "batch":
        mean, rstd = of_channels(mean, channel, channels), of_channels(rstd, channel, channels)
    if norm != "none":
        scale, shift = of_channels(scale, channel, channels), of_channels(shift, channel, channels)
    upper = taps(weight, 0, channel, channels)
    middle = taps(weight, 1, channel, channels)
    lower = taps(weight, 2, channel, channels)
    start = tl.zeros((tile_columns, tile_channels), tl.float32) + of_channels(bias, channel, channels)
    above = start
    here = start
    for row in tl.range(first - 1, last + 1, num_stages=stages):
        left = input_row(x, mean, rstd, scale, shift, row, columns - 1, channel, height, width, channels, norm)
        centre = input_row(x, mean, rstd, scale, shift, row, columns, channel, height, width, channels, norm)
        right = input_row(x, mean, rstd, scale, shift, row, columns + 1, channel, height, width, channels, norm)
        done = above + left * lower[0] + centre * lower[1] + right * lower[2]
        at, there = places(row - 1, columns, channel, width, channels)
        if gelu:
            below, _ = normal(done)
            done *= below
        tl.store(y + at, done, there & (row > first))
        above = here + left * middle[0] + centre * middle[1] + right * middle[2]
        here = start + left * upper[0] + centre * upper[1] + right * upper[2]


@triton.jit
def of_input_kernel(
    gradient: tl.tensor,
    of_x: tl.tensor,
    weight: tl.tensor,
    x: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    slope: tl.tensor,
    of_scale: tl.tensor,
    of_shift: tl.tensor,
    height: int,
    width: int,
    channels: int,
    tile_rows: tl.constexpr,
    tile_columns: tl.constexpr,
    tile_channels: tl.constexpr,
    stages: tl.constexpr,
) -> None:
    """The convolution of the gradient with the weights turned round, then back through BatchNorm and GELU if x is."""
    image, first, last, columns, channel = part(height, width, tile_rows, tile_columns, tile_channels)
    gradient += image * height * width * channels
    of_x += image * height * width * channels
    if x is not None:
        x += image * height * width * channels
        mean, rstd = of_channels(mean, channel, channels), of_channels(rstd, channel, channels)
        slope = of_channels(slope, channel, channels)
        of_scale, of_shift = of_channels(of_scale, channel, channels), of_channels(of_shift, channel, channels)
    upper = taps(weight, 0, channel, channels)
    middle = taps(weight, 1, channel, channels)
    lower = taps(weight, 2, channel, channels)
    above = tl.zeros((tile_columns, tile_channels), tl.float32)
    here = above
    for row in tl.range(first - 1, last + 1, num_stages=stages):
        left = load_row(gradient, row, columns - 1, channel, height, width, channels)
        centre = load_row(gradient, row, columns, channel, height, width, channels)
        right = load_row(gradient, row, columns + 1, channel, height, width, channels)
        done = above + left * upper[2] + centre * upper[1] + right * upper[0]
        at, there = places(row - 1, columns, channel, width, channels)
        there = there & (row > first)
        if x is not None:
            value = tl.load(x + at, there, other=0.0).to(tl.float32)
            below, density = normal(value)
            normed = (value * below - mean) * rstd
            done = slope * (done - of_shift - normed * of_scale)
            done *= below + value * density
        tl.store(of_x + at, done, there)
        above = here + left * middle[2] + centre * middle[1] + right * middle[0]
        here = left * lower[2] + centre * lower[1] + right * lower[0]


@triton.jit
def sums_kernel(
    gradient: tl.tensor,
    x: tl.tensor,
    sums: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    height: int,
    width: int,
    channels: int,
    norm: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_columns: tl.constexpr,
    tile_channels: tl.constexpr,
    stages: tl.constexpr,
) -> None:
    """A row of the input meets three of the gradient, those of its outputs, of which this part's alone count here."""
    image, first, last, columns, channel = part(height, width, tile_rows, tile_columns, tile_channels)
    gradient += image * height * width * channels
    x += image * height * width * channels
    if norm == "layer":
        mean += image * height * width
        rstd += image * height * width
    if norm == "batch":
        mean, rstd = of_channels(mean, channel, channels), of_channels(rstd, channel, channels)
    zeros = tl.zeros((tile_columns, tile_channels), tl.float32)
    above = tl.zeros((tile_columns, tile_channels), tl.float32)  # two values: of one and the same, handed from name
    here = tl.zeros((tile_columns, tile_channels), tl.float32)  # to name, Triton's compiler would not see a change
    upper, middle, lower = (zeros, zeros, zeros), (zeros, zeros, zeros), (zeros, zeros, zeros)
    upper_inside, middle_inside, lower_inside = zeros, zeros, zeros
    for row in tl.range(first - 1, last + 1, num_stages=stages):
        below = load_row(gradient, row + 1, columns, channel, last, width, channels)
        left = normed_row(x, mean, rstd, row, columns - 1, channel, height, width, channels, norm)
        centre = normed_row(x, mean, rstd, row, columns, channel, height, width, channels, norm)
        right = normed_row(x, mean, rstd, row, columns + 1, channel, height, width, channels, norm)
        upper = upper[0] + below * left, upper[1] + below * centre, upper[2] + below * right
        middle = middle[0] + here * left, middle[1] + here * centre, middle[2] + here * right
        lower = lower[0] + above * left, lower[1] + above * centre, lower[2] + above * right
        inside = tl.where((row >= 0) & (row < height), 1.0, 0.0)
        upper_inside += below * inside
        middle_inside += here
        lower_inside += above * inside
        above = here
        here = below

    sums += tl.program_id(0).to(tl.int64) * 18 * channels + channel
    store_sums(sums, upper[0], upper[1], upper[2], channel, channels)
    store_sums(sums + 3 * channels, middle[0], middle[1], middle[2], channel, channels)
    store_sums(sums + 6 * channels, lower[0], lower[1], lower[2], channel, channels)
    from_left = (columns > 0)[:, None].to(tl.float32)
    from_right = (columns + 1 < width)[:, None].to(tl.float32)
    sums += 9 * channels
    store_sums(sums, upper_inside * from_left, upper_inside, upper_inside * from_right, channel, channels)
    sums += 3 * channels
    store_sums(sums, middle_inside * from_left, middle_inside, middle_inside * from_right, channel, channels)
    sums += 3 * channels
    store_sums(sums, lower_inside * from_left, lower_inside, lower_inside * from_right, channel, channels)
