"""The position encoding: a function of the grid alone, so that one model serves images of any size."""

import math

import torch
from torch import Tensor, nn


class SinePositionEncoding(nn.Module):
    """2-D sine encoding followed by a learned 1 × 1 projection to the model's width (as in DETR, arXiv 2005.12872).

    Each axis is encoded by 32 channels: sines and cosines of the coordinate at geometrically spaced frequencies.
    Coordinates count from 1 and are divided by their last value, so they span (0, 2π] whatever the resolution.

    `forward(grid)` returns (1, C, H, W) for a grid (H, W).
    """

    AXIS_CHANNELS = 32
    TEMPERATURE = 10_000.0

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(2 * self.AXIS_CHANNELS, dim, kernel_size=1)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        H, W = grid
        weight = self.token_projection.weight
        y = self.encode_axis(H, weight.device)[:, :, None].expand(-1, H, W)
        x = self.encode_axis(W, weight.device)[:, None, :].expand(-1, H, W)
        return self.token_projection(torch.cat([y, x])[None].to(weight.dtype))

    def encode_axis(self, length: int, device: torch.device) -> Tensor:
        """(32, length): sines at the even channels, cosines of the same frequency at the odd ones; in fp32."""
        coordinate = torch.arange(1, length + 1, device=device, dtype=torch.float32)
        coordinate = coordinate / (length + 1e-6) * (2 * math.pi)
        even = torch.arange(0, self.AXIS_CHANNELS, 2, device=device, dtype=torch.float32)
        angle = coordinate / self.TEMPERATURE ** (even / self.AXIS_CHANNELS)[:, None]  # (16, length)
        return torch.stack([angle.sin(), angle.cos()], dim=1).flatten(0, 1)
