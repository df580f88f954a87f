"""Position encodings: the paper's, which is a function of the grid, and two others for the ablation.

All of them take images of any size. `forward(grid)` returns (1, C, H, W) for a grid (H, W); `NoPositionEncoding`
returns (1, C, 1, 1).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SinePositionEncoding(nn.Module):
    """2-D sine encoding followed by a learned 1 × 1 projection to the model's width (as in DETR, arXiv 2005.12872).

    Each axis has 32 channels: sines and cosines of the coordinate at geometrically spaced frequencies. Coordinates
    count from 1 and are divided by the last one, so they span (0, 2π] at every resolution.
    """

    AXIS_CHANNELS = 32
    TEMPERATURE = 10_000.0

    def __init__(self, dim: int, grid: tuple[int, int] | None = None) -> None:
        """The encoding does not depend on `grid`, the grid of the training resolution."""
        super().__init__()
        self.token_projection = nn.Conv2d(2 * self.AXIS_CHANNELS, dim, kernel_size=1)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        H, W = grid
        weight = self.token_projection.weight
        y = self.encode_axis(H, weight.device)[:, :, None].expand(-1, H, W)
        x = self.encode_axis(W, weight.device)[:, None, :].expand(-1, H, W)
        encoding = self.token_projection(torch.cat([y, x])[None].to(weight.dtype))
        return encoding.to(weight.dtype)  # under autocast too, so that the residual stream starts in full precision

    def encode_axis(self, length: int, device: torch.device) -> Tensor:
        """(32, length), in fp32: sines in the even channels, cosines of the same frequency in the odd ones."""
        coordinate = torch.arange(1, length + 1, device=device, dtype=torch.float32)
        coordinate = coordinate / (length + 1e-6) * (2 * math.pi)
        even = torch.arange(0, self.AXIS_CHANNELS, 2, device=device, dtype=torch.float32)
        angle = coordinate / self.TEMPERATURE ** (even / self.AXIS_CHANNELS)[:, None]  # (16, length)
        return torch.stack([angle.sin(), angle.cos()], dim=1).flatten(0, 1)


class LearnedPositionEncoding(nn.Module):
    """A learned vector for each place of a grid, as in ViT. For other grids the table is resampled (bicubic)."""

    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, dim, *grid), std=0.02))

    def forward(self, grid: tuple[int, int]) -> Tensor:
        if grid == self.table.shape[-2:]:
            return self.table
        return F.interpolate(self.table, grid, mode="bicubic", antialias=True)

    def no_weight_decay(self) -> set[str]:
        """The optimizer does not decay these parameters."""
        return {"table"}


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
