"""Random masks of patches for masked image modelling, and images without the masked patches.

An XCiT's stem is convolutional: a token depends on pixels of its neighbors, too. If the tokens were replaced after the
stem, as in iBOT's ViT, their neighbors would still show what was hidden. So the pixels are hidden, before the stem.
This works for every backbone, and there is no mask token to learn.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2
"""Patches are hidden in blocks of about this size, since single patches can be guessed from their neighbors."""


def block_masks(images: int, grid: Sequence[int], ratio: float, device: torch.device) -> Tensor:
    """Draw which patches are hidden: (images, H, W), bool. All random numbers come from torch's generator.

    A random half of the images hides round(ratio · H · W) patches each, the others hide none (as in iBOT, where the
    shares are random, too).
    """
    H, W = grid
    noise = torch.rand(images, 1, -(-H // BLOCK), -(-W // BLOCK), device=device)
    fine = torch.rand(images, H * W, device=device) * 1e-3  # which patches of the last block are hidden
    order = F.interpolate(noise, scale_factor=BLOCK)[:, 0, :H, :W].flatten(1) + fine
    rank = order.argsort(dim=1).argsort(dim=1)
    chosen = torch.rand(images, device=device) < 0.5
    return ((rank < round(ratio * H * W)) & chosen[:, None]).view(images, H, W)


def hide_patches(images: Tensor, masks: Tensor, patch_size: int) -> Tensor:
    """Set the pixels of hidden patches to 0, the mean of normalized images.

    Args:
        images: (B, C, H, W).
        masks: which patches are hidden, (B, ⌈H / p⌉, ⌈W / p⌉), bool.
        patch_size: p, in pixels.
    """
    pixels = masks.repeat_interleave(patch_size, dim=1).repeat_interleave(patch_size, dim=2)
    return images * ~pixels[:, None, : images.shape[-2], : images.shape[-1]]
