"""A tiny segmentation task, and batches of rectangles in the colors of their classes."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import xcit
from xcit.engine.task import Target
from xcit.tasks.segment import Segment

CLASSES = ("ground", "red", "green", "blue")


def task(**options: Any) -> Segment:
    torch.manual_seed(0)
    model = xcit.create_model("xcit_n12", num_classes=0, depth=3, dim=32, heads=2, patch_size=8)
    return Segment(model, Target("mask", CLASSES), **({"channels": 16, "dropout": 0.0} | options)).train()


def example(seed: int, height: int = 64, width: int = 64) -> tuple[Tensor, Tensor]:
    """An image, (3, H, W), and its mask, (H, W)."""
    generator = torch.Generator().manual_seed(seed)
    image, mask = 0.2 * torch.randn(3, height, width, generator=generator), torch.zeros(height, width).long()
    for label in (1, 2, 3):
        top, left = (int(torch.randint(side // 2, (), generator=generator)) for side in (height, width))
        place = (slice(top, top + height // 3), slice(left, left + width // 3))
        mask[place] = label
        image[:, *place] = 0.2 * image[:, *place] + 2 * torch.eye(3)[label - 1][:, None, None]
    mask[:, -5:] = -1
    return image, mask


def batch(images: int = 4, height: int = 64, width: int = 64) -> SimpleNamespace:
    """As the view "segmentation" makes them in training."""
    examples = [example(seed, height, width) for seed in range(images)]
    return SimpleNamespace(images=torch.stack([x for x, _ in examples]), masks=torch.stack([m for _, m in examples]))


def whole_masks(seeds: range, originals: tuple[tuple[int, int], ...] = ((70, 90), (64, 64))) -> SimpleNamespace:
    """As it makes them in evaluation: each image of its own size, and masks of the originals'."""
    images, pictures, masks = [], [], []
    for seed in seeds:
        height, width = originals[seed % len(originals)]
        image, mask = example(seed, height, width)
        small = torch.nn.functional.interpolate(image[None], size=(height // 2 + 16, width // 2 + 16), mode="bilinear")
        images.append(small)
        pictures.append((50 * small[0].permute(1, 2, 0) + 100).clamp(0, 255).byte())
        masks.append(mask)
    return SimpleNamespace(images=images, pictures=pictures, masks=masks)
