"""Semantic FPN, a light head for segmentation (Kirillov et al., arXiv 1901.02446, section 3)."""

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from .conv_block import ConvBNReLU, classifier, resized
from .pyramid import STRIDES


class SemanticFPN(nn.Module):
    """Four maps of strides 4 to 32, (B, width, H, W) → logits at stride 4, (B, num_classes, H, W).

    An FPN passes what the coarse maps know to the fine ones. Each of its maps goes through convolutions that double its
    size until it has stride 4. The logits are a projection of their sum.

    Args:
        width: channels of the maps, and of those of the FPN.
        num_classes: number of classes.
        channels: of the convolutions.
        dropout: probability that a channel of the sum is zeroed in training.
    """

    def __init__(self, width: int, num_classes: int, *, channels: int = 128, dropout: float = 0.1) -> None:
        super().__init__()
        self.neck = FeaturePyramidNetwork([width] * len(STRIDES), width)
        self.scale_heads = nn.ModuleList(to_stride_4(stride, width, channels) for stride in STRIDES)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = classifier(channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        finest, *coarser = self.neck({str(stride): x for stride, x in zip(STRIDES, maps, strict=True)}).values()
        first, *heads = self.scale_heads
        x = first(finest)
        for head, level in zip(heads, coarser, strict=True):
            x = x + head(level)
        return self.conv_seg(self.dropout(x))


class Doubled(nn.Module):
    """(B, C, H, W) → (B, C, 2H, 2W)."""

    def forward(self, x: Tensor) -> Tensor:
        return resized(x, (2 * x.shape[-2], 2 * x.shape[-1]))


def to_stride_4(stride: int, width: int, channels: int) -> nn.Sequential:
    """The convolutions of a map: one if it has stride 4, otherwise one before each doubling."""
    doublings = stride.bit_length() - STRIDES[0].bit_length()
    steps: list[nn.Module] = []
    for number in range(max(1, doublings)):
        steps.append(ConvBNReLU(channels if number else width, channels, kernel_size=3))
        steps += [Doubled()] if doublings else []
    return nn.Sequential(*steps)
