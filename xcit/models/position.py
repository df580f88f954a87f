"""Position encodings: the paper's, which is a function of the grid, and two others for the ablation.

All of them take images of any size. `forward(grid)` returns (1, C, H, W) for a grid (H, W); `NoPositionEncoding`
returns (1, C, 1, 1).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .initialization import truncated_normal

AXIS_CHANNELS = 32


class SinePositionEncoding(nn.Module):
    """2-D sine encoding followed by a learned 1 × 1 projection to the model's width (as in DETR, arXiv 2005.12872).

    Each axis has 32 channels: sines and cosines of the coordinate at geometrically spaced frequencies. Coordinates
    count from 1 and are divided by the last one, so they span (0, 2π] at every resolution.
    """

    def __init__(self, dim: int, grid: tuple[int, int] | None = None) -> None:
        """The encoding does not depend on `grid`, the grid of the training resolution."""
        super().__init__()
        self.token_projection = nn.Conv2d(2 * AXIS_CHANNELS, dim, kernel_size=1)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        weight = self.token_projection.weight
        encoding = self.token_projection(encode_grid(grid, weight))
        return encoding.to(weight.dtype)  # under autocast too, so that the residual stream starts in full precision


@torch.fx.wrap  # torch.fx calls it as a whole: torch.arange cannot be traced with an unknown length
def encode_grid(grid: tuple[int, int], weight: Tensor) -> Tensor:
    """(1, 64, H, W): y in the first 32 channels, x in the others, on the device and in the type of the weight."""
    H, W = grid
    y = encode_axis(H, weight.device)[:, :, None].expand(-1, H, W)
    x = encode_axis(W, weight.device)[:, None, :].expand(-1, H, W)
    return torch.cat([y, x])[None].to(weight.dtype)


def encode_axis(length: int, device: torch.device, channels: int = AXIS_CHANNELS, base: float = 10_000.0) -> Tensor:
    """(channels, length), in fp32: sines in the even channels, cosines of the same frequency in the odd ones."""
    coordinate = torch.arange(1, length + 1, device=device, dtype=torch.float32)
    coordinate = coordinate / (length + 1e-6) * (2 * math.pi)
    even = torch.arange(0, channels, 2, device=device, dtype=torch.float32)
    angle = coordinate / base ** (even / channels)[:, None]  # (channels / 2, length)
    return torch.stack([angle.sin(), angle.cos()], dim=1).flatten(0, 1)


class LearnedPositionEncoding(nn.Module):
    """A learned vector for each place of a grid, as in ViT. For other grids the table is resampled (bicubic)."""

    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.table = nn.Parameter(truncated_normal(torch.empty(1, dim, *grid)))

    def forward(self, grid: tuple[int, int]) -> Tensor:
        return resample(self.table, grid)

    def no_weight_decay(self) -> set[str]:
        """The optimizer does not decay these parameters."""
        return {"table"}


@torch.fx.wrap  # torch.fx calls it as a whole: it cannot trace a branch that depends on the grid
def resample(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """The table, (1, C, H, W), at another grid."""
    if list(grid) == list(table.shape[-2:]):
        return table
    return F.interpolate(table, list(grid), mode="bicubic", antialias=True)


class NoPositionEncoding(nn.Module):
    """Zeros. Only the padding of the convolutions in stem and LPI tells positions apart."""

    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.zeros: Tensor
        self.register_buffer("zeros", torch.zeros(1, dim, 1, 1), persistent=False)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        return self.zeros


POSITIONS: dict[str, type[nn.Module]] = {
    "sine": SinePositionEncoding,
    "learned": LearnedPositionEncoding,
    "none": NoPositionEncoding,
}
