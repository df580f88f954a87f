"""Depthwise 3 × 3 convolutions in Triton, with the norm before them in the same pass over the tokens.

A program goes down a strip of the map and applies the norm to the rows that it loads. Outside the image there is zero,
not the norm of zero.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gelu import normal_distribution
from .launch import device_of, load_channels
from .rows import input_row, load_row, load_taps, locate_part, normed_row, row_offsets, store_sums

PART, WARPS = (16, 16, 64, 3), 2
"""Rows, columns and channels of a program's part of a map, the number of rows that it loads ahead, and its warps: the
fastest on an H200."""
SUMS_PART, SUMS_WARPS = (16, 16, 16, 1), 1
"""The same for the sums over taps, which need twelve registers per place."""


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
    """The convolution of the norm of x, (B, N, C) → (B, N, C), in dtype, optionally followed by a GELU.

    norm: "layer" or "batch", with the mean and rstd of each token or channel; "affine" only scales and shifts; "none".
    """
    x = x.contiguous()
    y = torch.empty_like(x, dtype=dtype)
    parameters = mean, rstd, scale, shift
    with device_of(x):
        convolve_kernel[parts(x, grid, PART)](
            x, y, weight.contiguous(), bias, *parameters, *grid, x.shape[-1], gelu, norm, *PART, num_warps=WARPS
        )
    return y


def grad_input(
    grad: Tensor,
    weight: Tensor,
    grid: Sequence[int],
    dtype: torch.dtype,
    x: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    slope: Tensor | None,
    grad_scale: Tensor | None,
    grad_shift: Tensor | None,
) -> Tensor:
    """The gradient of the convolution's input, or with x given the gradient of x, where the input is bn(gelu(x)).

    slope: scale · rstd. grad_scale, grad_shift: their gradients, divided by B · N.
    """
    grad = grad.contiguous()
    x = None if x is None else x.contiguous()
    grad_x = torch.empty_like(grad, dtype=dtype)
    batchnorm = x, mean, rstd, slope, grad_scale, grad_shift
    with device_of(grad):
        grad_input_kernel[parts(grad, grid, PART)](
            grad, grad_x, weight.contiguous(), *batchnorm, *grid, grad.shape[-1], *PART, num_warps=WARPS
        )
    return grad_x


def sums_over_taps(
    grad: Tensor,
    x: Tensor,
    grid: Sequence[int],
    norm: str = "none",
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Σ grad · x̂ and Σ grad for every tap, over the places where it is inside the image: (C, 1, 3, 3) each."""
    grad, x = grad.contiguous(), x.contiguous()
    programs = parts(x, grid, SUMS_PART)
    sums = x.new_empty(programs[0], 2, 9, x.shape[-1], dtype=torch.float32)  # of every part of the maps
    with device_of(x):
        sums_kernel[programs](grad, x, sums, mean, rstd, *grid, x.shape[-1], norm, *SUMS_PART, num_warps=SUMS_WARPS)
    grad_taps, grad_inside = sums.sum(0).mT.reshape(2, x.shape[-1], 1, 3, 3)
    return grad_taps, grad_inside


def parts(x: Tensor, grid: Sequence[int], size: tuple[int, int, int, int]) -> tuple[int, int]:
    """The number of programs for the maps, and for the channels."""
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
    """A row of the input adds to three rows of the output. The one above it is complete then and is stored."""
    image, first, last, columns, channel = locate_part(height, width, tile_rows, tile_columns, tile_channels)
    x += image * height * width * channels
    y += image * height * width * channels
    if norm == "layer":
        mean += image * height * width
        rstd += image * height * width
    if norm == "batch":
        mean, rstd = load_channels(mean, channel, channels), load_channels(rstd, channel, channels)
    if norm != "none":
        scale, shift = load_channels(scale, channel, channels), load_channels(shift, channel, channels)
    upper = load_taps(weight, 0, channel, channels)
    middle = load_taps(weight, 1, channel, channels)
    lower = load_taps(weight, 2, channel, channels)
    start = tl.zeros((tile_columns, tile_channels), tl.float32) + load_channels(bias, channel, channels)
    above = start
    here = start
    for row in tl.range(first - 1, last + 1, num_stages=stages):
        left = input_row(x, mean, rstd, scale, shift, row, columns - 1, channel, height, width, channels, norm)
        center = input_row(x, mean, rstd, scale, shift, row, columns, channel, height, width, channels, norm)
        right = input_row(x, mean, rstd, scale, shift, row, columns + 1, channel, height, width, channels, norm)
        done = above + left * lower[0] + center * lower[1] + right * lower[2]
        at, there = row_offsets(row - 1, columns, channel, width, channels)
        if gelu:
            below, _ = normal_distribution(done)
            done *= below
        tl.store(y + at, done, there & (row > first))
        above = here + left * middle[0] + center * middle[1] + right * middle[2]
        here = start + left * upper[0] + center * upper[1] + right * upper[2]


@triton.jit
def grad_input_kernel(
    grad: tl.tensor,
    grad_x: tl.tensor,
    weight: tl.tensor,
    x: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    slope: tl.tensor,
    grad_scale: tl.tensor,
    grad_shift: tl.tensor,
    height: int,
    width: int,
    channels: int,
    tile_rows: tl.constexpr,
    tile_columns: tl.constexpr,
    tile_channels: tl.constexpr,
    stages: tl.constexpr,
) -> None:
    """Convolves the gradient with the flipped weights. With x it goes on through BatchNorm and GELU."""
    image, first, last, columns, channel = locate_part(height, width, tile_rows, tile_columns, tile_channels)
    grad += image * height * width * channels
    grad_x += image * height * width * channels
    if x is not None:
        x += image * height * width * channels
        mean, rstd = load_channels(mean, channel, channels), load_channels(rstd, channel, channels)
        slope = load_channels(slope, channel, channels)
        grad_scale = load_channels(grad_scale, channel, channels)
        grad_shift = load_channels(grad_shift, channel, channels)
    upper = load_taps(weight, 0, channel, channels)
    middle = load_taps(weight, 1, channel, channels)
    lower = load_taps(weight, 2, channel, channels)
    above = tl.zeros((tile_columns, tile_channels), tl.float32)
    here = above
    for row in tl.range(first - 1, last + 1, num_stages=stages):
        left = load_row(grad, row, columns - 1, channel, height, width, channels)
        center = load_row(grad, row, columns, channel, height, width, channels)
        right = load_row(grad, row, columns + 1, channel, height, width, channels)
        done = above + left * upper[2] + center * upper[1] + right * upper[0]
        at, there = row_offsets(row - 1, columns, channel, width, channels)
        there = there & (row > first)
        if x is not None:
            value = tl.load(x + at, there, other=0.0).to(tl.float32)
            below, density = normal_distribution(value)
            normed = (value * below - mean) * rstd
            done = slope * (done - grad_shift - normed * grad_scale)
            done *= below + value * density
        tl.store(grad_x + at, done, there)
        above = here + left * middle[2] + center * middle[1] + right * middle[0]
        here = left * lower[2] + center * lower[1] + right * lower[0]


@triton.jit
def sums_kernel(
    grad: tl.tensor,
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
    """A row of the input is multiplied by three rows of the gradient: those of its outputs, within this part."""
    image, first, last, columns, channel = locate_part(height, width, tile_rows, tile_columns, tile_channels)
    grad += image * height * width * channels
    x += image * height * width * channels
    if norm == "layer":
        mean += image * height * width
        rstd += image * height * width
    if norm == "batch":
        mean, rstd = load_channels(mean, channel, channels), load_channels(rstd, channel, channels)
    zeros = tl.zeros((tile_columns, tile_channels), tl.float32)
    above = tl.zeros((tile_columns, tile_channels), tl.float32)  # Two tensors: if both names had one value,
    here = tl.zeros((tile_columns, tile_channels), tl.float32)  # Triton's compiler would miss that the loop changes it.
    upper, middle, lower = (zeros, zeros, zeros), (zeros, zeros, zeros), (zeros, zeros, zeros)
    upper_inside, middle_inside, lower_inside = zeros, zeros, zeros
    for row in tl.range(first - 1, last + 1, num_stages=stages):
        below = load_row(grad, row + 1, columns, channel, last, width, channels)
        left = normed_row(x, mean, rstd, row, columns - 1, channel, height, width, channels, norm)
        center = normed_row(x, mean, rstd, row, columns, channel, height, width, channels, norm)
        right = normed_row(x, mean, rstd, row, columns + 1, channel, height, width, channels, norm)
        upper = upper[0] + below * left, upper[1] + below * center, upper[2] + below * right
        middle = middle[0] + here * left, middle[1] + here * center, middle[2] + here * right
        lower = lower[0] + above * left, lower[1] + above * center, lower[2] + above * right
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
