"""Rows of a map for the Triton convolutions: their offsets, their values after the norm, zero outside the map.

The normalized input x̂ = (x - mean) · rstd is in registers only. mean and rstd are those of each token (norm="layer")
or those of each channel (norm="batch").
"""

import triton
import triton.language as tl


@triton.jit
def locate_part(
    height: int, width: int, tile_rows: tl.constexpr, tile_columns: tl.constexpr, tile_channels: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """The program's part of the maps: image (64 bits), first row, row after the last one, columns and channels."""
    program = tl.program_id(0)
    across, down = tl.cdiv(width, tile_columns), tl.cdiv(height, tile_rows)
    first = program // across % down * tile_rows
    columns = program % across * tile_columns + tl.arange(0, tile_columns)
    channel = tl.program_id(1) * tile_channels + tl.arange(0, tile_channels)
    return (program // (across * down)).to(tl.int64), first, tl.minimum(first + tile_rows, height), columns, channel


@triton.jit
def row_offsets(row: int, columns: tl.tensor, channel: tl.tensor, width: int, channels: int) -> tuple[tl.tensor, ...]:
    """The offsets of a row's values in an image, (columns, channels), and the mask of existing columns and channels."""
    at = (row * width + columns)[:, None] * channels + channel[None, :]
    return at, ((columns >= 0) & (columns < width))[:, None] & (channel < channels)[None, :]


@triton.jit
def load_row(
    x: tl.tensor, row: int, columns: tl.tensor, channel: tl.tensor, height: int, width: int, channels: int
) -> tl.tensor:
    """A row in fp32, zero outside the image."""
    at, there = row_offsets(row, columns, channel, width, channels)
    return tl.load(x + at, there & (row >= 0) & (row < height), other=0.0).to(tl.float32)


@triton.jit
def normed_row(
    x: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    row: int,
    columns: tl.tensor,
    channel: tl.tensor,
    height: int,
    width: int,
    channels: int,
    norm: tl.constexpr,
) -> tl.tensor:
    """A row of x̂, zero outside the image. mean, rstd: pointers to those of the tokens, or values of the channels."""
    value = load_row(x, row, columns, channel, height, width, channels)
    inside = (row >= 0) & (row < height) & (columns >= 0) & (columns < width)
    if norm == "layer":
        token = row * width + columns
        average = tl.load(mean + token, inside, other=0.0)
        inverse = tl.load(rstd + token, inside, other=0.0)
        value = (value - average[:, None]) * inverse[:, None]
    if norm == "batch":
        value = tl.where(inside[:, None], (value - mean) * rstd, 0.0)
    return value


@triton.jit
def input_row(
    x: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    row: int,
    columns: tl.tensor,
    channel: tl.tensor,
    height: int,
    width: int,
    channels: int,
    norm: tl.constexpr,
) -> tl.tensor:
    """A row of the convolution's input: x̂ scaled and shifted, zero outside the image."""
    value = normed_row(x, mean, rstd, row, columns, channel, height, width, channels, norm)
    if norm != "none":
        inside = (row >= 0) & (row < height) & (columns >= 0) & (columns < width)
        value = tl.where(inside[:, None], value * scale + shift, 0.0)
    return value


@triton.jit
def load_taps(weight: tl.tensor, row: int, channel: tl.tensor, channels: int) -> tuple[tl.tensor, ...]:
    """The three weights in one row of every channel's 3 × 3."""
    at = weight + channel * 9 + row * 3
    there = channel < channels
    left = tl.load(at, there, other=0.0).to(tl.float32)[None, :]
    center = tl.load(at + 1, there, other=0.0).to(tl.float32)[None, :]
    right = tl.load(at + 2, there, other=0.0).to(tl.float32)[None, :]
    return left, center, right


@triton.jit
def store_sums(
    sums: tl.tensor, left: tl.tensor, center: tl.tensor, right: tl.tensor, channel: tl.tensor, channels: int
) -> None:
    tl.store(sums, tl.sum(left, 0), channel < channels)
    tl.store(sums + channels, tl.sum(center, 0), channel < channels)
    tl.store(sums + 2 * channels, tl.sum(right, 0), channel < channels)
