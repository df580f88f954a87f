"""UperNet, the stronger head for segmentation (Xiao et al., arXiv 1807.10221), and the auxiliary head beside it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conv_block import ConvBNReLU, classifier, resized
from .pyramid import STRIDES

POOLED_SIDES = (1, 2, 3, 6)


class UperNet(nn.Module):
    """Four maps of strides 4 to 32, (B, width, H, W) → logits at stride 4, (B, num_classes, H, W).

    The coarsest map sees the whole image through averages over 1, 4, 9 and 36 parts of it (PSPNet, arXiv 1612.01105).
    What it knows is added to the finer maps, from one to the next. The logits are a projection of all four together.

    Args:
        width: channels of the maps.
        num_classes: number of classes.
        channels: of the convolutions.
        dropout: probability that a channel is zeroed before the projection in training.
    """

    def __init__(self, width: int, num_classes: int, *, channels: int = 512, dropout: float = 0.1) -> None:
        super().__init__()
        finer = range(len(STRIDES) - 1)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), ConvBNReLU(width, channels, kernel_size=1))
            for side in POOLED_SIDES
        )
        self.bottleneck = ConvBNReLU(width + len(POOLED_SIDES) * channels, channels, kernel_size=3)
        self.lateral_convs = nn.ModuleList(ConvBNReLU(width, channels, kernel_size=1) for _ in finer)
        self.fpn_convs = nn.ModuleList(ConvBNReLU(channels, channels, kernel_size=3) for _ in finer)
        self.fpn_bottleneck = ConvBNReLU(len(STRIDES) * channels, channels, kernel_size=3)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = classifier(channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        *finer, coarsest = maps
        pooled = [resized(pool(coarsest), coarsest.shape[-2:]) for pool in self.psp_modules]
        levels = [self.bottleneck(torch.cat([coarsest, *pooled], dim=1))]
        for lateral, level in zip(reversed(self.lateral_convs), reversed(finer), strict=True):
            levels.append(lateral(level) + resized(levels[-1], level.shape[-2:]))
        return self.conv_seg(self.dropout(self.fuse(levels)))

    def fuse(self, levels: list[Tensor]) -> Tensor:
        """fpn_bottleneck of all levels side by side at stride 4; the levels go from the coarsest to the finest.

        A convolution of maps side by side is the sum of one convolution for each. The maps themselves together would be
        four times as large: 12 GB for 24 megapixels.
        """
        size = levels[-1].shape[-2:]
        weights = self.fpn_bottleneck.conv.weight.chunk(len(STRIDES), dim=1)
        total = None
        for refine, weight in zip((*self.fpn_convs, nn.Identity()), weights, strict=True):
            part = F.conv2d(resized(refine(levels.pop()), size), weight, padding=1)
            total = part if total is None else total.add_(part)
        return F.relu(self.fpn_bottleneck.bn(total), inplace=True)


class FCNHead(nn.Module):
    """The auxiliary head, for training alone: the map of stride 16, (B, width, H, W) → logits, (B, num_classes, H, W).

    Args:
        width: channels of the map.
        num_classes: number of classes.
        channels: of the convolution.
        dropout: probability that a channel is zeroed before the projection in training.
    """

    stride = 16

    def __init__(self, width: int, num_classes: int, *, channels: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvBNReLU(width, channels, kernel_size=3))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = classifier(channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.conv_seg(self.dropout(self.convs(maps[STRIDES.index(self.stride)])))
