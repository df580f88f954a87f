"""Random masks of patches for masked image modelling, and images without the masked patches.

An XCiT's stem is convolutional: a token depends on pixels of its neighbors, too. If the tokens were replaced after the
stem, as in iBOT's ViT, their neighbors would still show what was hidden. So the pixels are hidden, before the stem.
This works for every backbone, and there is no mask token to learn.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2
"""Patches are hidden in blocks of about this size, since single patches can be guessed from their neighbors."""


class HiddenPatches(NamedTuple):
    """The hidden patches of a batch. Their number is always the same, so that nothing has to wait for the GPU."""

    images: Tensor
    """(M,): the indices of the images with hidden patches."""
    patches: Tensor
    """(M, k): the indices of the hidden patches of each of them, in row-major order."""

    def of(self, tokens: Tensor) -> Tensor:
        """The tokens of the hidden patches: (B, N, C) → (M, k, C)."""
        return tokens[self.images[:, None], self.patches]

    def masks(self, images: int, grid: Sequence[int]) -> Tensor:
        """Which patches of each image are hidden: (images, H, W), bool."""
        masks = torch.zeros(images, grid[0] * grid[1], dtype=torch.bool, device=self.images.device)
        masks[self.images[:, None], self.patches] = True
        return masks.view(images, *grid)


def hide_blocks(images: int, grid: Sequence[int], ratio: float, device: torch.device) -> HiddenPatches:
    """Draw which patches are hidden. All random numbers come from torch's generator.

    A random half of the images hides the same number of patches each, round(ratio · H · W), at least 1. In iBOT an
    image hides patches with a probability of one half, too, and the ratio is drawn anew for each.

    Args:
        images: Number of images.
        grid: Rows and columns of patches, (H, W).
        ratio: Share of an image's patches.
        device: Of the images.
    """
    H, W = grid
    noise = torch.rand(images, 1, -(-H // BLOCK), -(-W // BLOCK), device=device)
    blocks = F.interpolate(noise, scale_factor=BLOCK)[:, 0, :H, :W].flatten(1)
    tie_break = torch.rand(images, H * W, device=device) * 1e-3  # which patches of the last block are hidden
    chosen = torch.rand(images, device=device).argsort()[: max(1, images // 2)]
    number = max(1, round(ratio * H * W))
    return HiddenPatches(chosen, (blocks + tie_break)[chosen].topk(number, dim=1).indices)


def hide_patches(images: Tensor, masks: Tensor, patch_size: int) -> Tensor:
    """Set the pixels of hidden patches to 0, the mean of normalized images.

    Args:
        images: (B, C, H, W).
        masks: which patches are hidden, (B, ⌈H / p⌉, ⌈W / p⌉), bool.
        patch_size: p, in pixels.
    """
    pixels = masks.repeat_interleave(patch_size, dim=1).repeat_interleave(patch_size, dim=2)
    return images * ~pixels[:, None, : images.shape[-2], : images.shape[-1]]
