"""The parts that the heads of segmentation share."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class ConvBNReLU(nn.Module):
    """Convolution, BatchNorm, ReLU: (B, C, H, W) → (B, channels, H, W). The names are those of the authors' files."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """The last layer of a head: a 1 × 1 convolution to the logits."""
    conv = nn.Conv2d(channels, num_classes, kernel_size=1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def resized(x: Tensor, size: Any) -> Tensor:
    """(B, C, H, W) at another size, (height, width), with bilinear interpolation."""
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)
