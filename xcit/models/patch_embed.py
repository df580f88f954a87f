"""From pixels to tokens: the paper's convolutional stem, and the linear projection of its ablation.

Both accept any image size: if the patch does not divide the image, zeros are padded at the bottom and the
right, and the grid is ⌈H / p⌉ × ⌈W / p⌉.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class ConvPatchEmbed(nn.Module):
    """log₂ p convolutions, 3 × 3 with stride 2, each with BatchNorm, GELU between them (after LeViT, arXiv 2104.01136).

    The width doubles at each step and ends at `dim`. Input: (B, in_chans, H, W). Output: (B, dim, ⌈H / p⌉, ⌈W / p⌉).
    The padding of the convolutions fills an incomplete patch.
    """

    def __init__(self, patch_size: int, in_chans: int, dim: int) -> None:
        super().__init__()
        steps = patch_size.bit_length() - 1
        widths = [in_chans, *(dim >> step for step in reversed(range(steps)))]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            convolution = nn.Conv2d(width_in, width_out, kernel_size=3, stride=2, padding=1, bias=False)
            step = nn.Sequential if width_out < dim else LastConvNorm
            layers += [step(convolution, nn.BatchNorm2d(width_out)), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images)


class LastConvNorm(nn.Sequential):
    """The convolution and the BatchNorm before the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        # The channels are last in memory in tokens (B, N, C), and so in the gradient that comes from there. torch's
        # BatchNorm needs the same of its input: otherwise its gradients for a batch of one are wrong on CPUs.
        x = self[0](x).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        return self[1](x)


class LinearPatchEmbed(nn.Module):
    """One linear map of each flattened patch, as in ViT (paper, table 4). Shapes are those of `ConvPatchEmbed`."""

    def __init__(self, patch_size: int, in_chans: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        return self.proj(F.pad(images, (0, -width % self.patch_size, 0, -height % self.patch_size)))


PATCH_EMBEDS = {"conv": ConvPatchEmbed, "linear": LinearPatchEmbed}
