"""Position encodings: the paper's, a function of the grid alone, and a learned one to compare it with.

Both serve images of any size. `forward(grid)` returns (1, C, H, W) for a grid (H, W).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SinePositionEncoding(nn.Module):
    """2-D sine encoding followed by a learned 1 × 1 projection to the model's width (as in DETR, arXiv 2005.12872).

    Each axis is encoded by 32 channels: sines and cosines of the coordinate at geometrically spaced frequencies.
    Coordinates count from 1 and are divided by their last value, so they span (0, 2π] whatever the resolution.
    """

    AXIS_CHANNELS = 32
    TEMPERATURE = 10_000.0

    def __init__(self, dim: int, grid: tuple[int, int] | None = None) -> None:
        """grid is that of the training resolution; the encoding does not depend on it."""
        super().__init__()
        self.token_projection = nn.Conv2d(2 * self.AXIS_CHANNELS, dim, kernel_size=1)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        H, W = grid
        weight = self.token_projection.weight
        y = self.encode_axis(H, weight.device)[:, :, None].expand(-1, H, W)
        x = self.encode_axis(W, weight.device)[:, None, :].expand(-1, H, W)
        encoding = self.token_projection(torch.cat([y, x])[None].to(weight.dtype))
        return encoding.to(weight.dtype)  # under autocast too: here the tokens start, and their sum stays exact

    def encode_axis(self, length: int, device: torch.device) -> Tensor:
        """(32, length): sines at the even channels, cosines of the same frequency at the odd ones; in fp32."""
        coordinate = torch.arange(1, length + 1, device=device, dtype=torch.float32)
        coordinate = coordinate / (length + 1e-6) * (2 * math.pi)
        even = torch.arange(0, self.AXIS_CHANNELS, 2, device=device, dtype=torch.float32)
        angle = coordinate / self.TEMPERATURE ** (even / self.AXIS_CHANNELS)[:, None]  # (16, length)
        return torch.stack([angle.sin(), angle.cos()], dim=1).flatten(0, 1)


class LearnedPositionEncoding(nn.Module):
    """A vector for each place of a grid, as in ViT; for any other grid it is resampled (bicubic)."""

    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, dim, *grid), std=0.02))

    def forward(self, grid: tuple[int, int]) -> Tensor:
        if grid == self.table.shape[-2:]:
            return self.table
        return F.interpolate(self.table, grid, mode="bicubic", antialias=True)

    def no_weight_decay(self) -> set[str]:
        return {"table"}


class NoPositionEncoding(nn.Module):
    """Zeros: what the convolutions of the stem and the LPI tell of positions is all."""

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
