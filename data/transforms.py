"""Augments training images: workers crop, flip and color one image at a time; the device normalizes and erases batches.

The augmentation is DeiT's, with timm's operations, or the 3-Augment of DeiT III.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from xcit.encoded_image import EncodedImage
from xcit.errors import InputError
from xcit.preprocessing import Preprocessing

from .crops import random_resized_crop
from .normalize import Normalize, one_thread
from .rand_augment import use_fast_shifts
from .shared_memory import SharedBuffers


class TrainTransform:
    """Random resized crop, flip, then 3-Augment, color jitter or RandAugment; on the device, random erasing.

    Args:
        preprocessing: Size of the output, how images are read and resized, mean and std.
        scale: Range of the crop's share of the image's area.
        ratio: Range of the crop's aspect ratio; see `random_resized_crops`.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength of color jitter. As in DeiT and timm, it is not used together with RandAugment.
        rand_augment: timm's policy string, for example "rand-m9-mstd0.5-inc1", or None.
        erase_prob: Probability that a rectangle of the image is replaced by random pixels.
        three_augment: Whether to apply 3-Augment (see `gray_solarize_or_blur`) before color jitter. It excludes
            RandAugment.

    Raises:
        InputError: Both three_augment and rand_augment are given, or one of the augmentations of colors for images that
            are not RGB with 8 bits.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        scale: Sequence[float],
        ratio: Sequence[float],
        hflip: float,
        color_jitter: float,
        rand_augment: str | None,
        erase_prob: float,
        three_augment: bool = False,
    ) -> None:
        if three_augment and rand_augment:
            raise InputError(
                f"augment.three_augment=true: cannot be combined with augment.rand_augment={rand_augment}; "
                "disable one of them"
            )
        if (color_jitter or rand_augment or three_augment) and not preprocessing.is_rgb_of_8_bits:
            raise InputError("color_jitter, rand_augment and three_augment: need RGB images with 8 bits")
        self.preprocessing, self.scale, self.ratio = preprocessing, scale, ratio
        self.hflip, self.erase_prob = hflip, erase_prob
        self.normalize = Normalize(preprocessing)
        self.buffers = SharedBuffers()
        # timm returns three stages. Only the second one, color jitter or RandAugment, is used.
        _, color, _ = create_transform(
            preprocessing.size,
            is_training=True,
            color_jitter=color_jitter or None,
            auto_augment=rand_augment,
            interpolation=preprocessing.interpolation,
            mean=preprocessing.mean,
            separate=True,
        )
        use_fast_shifts(color.transforms)
        self.color_transforms = [*([gray_solarize_or_blur] if three_augment else []), *color.transforms]

    def __call__(self, image: Image.Image | EncodedImage) -> Tensor:
        """Crop and augment one image. Return (H, W, C), in the type of the pixels.

        All random numbers come from the global generators of Python, numpy and torch.
        """
        pixels = random_resized_crop(image, self.preprocessing, self.scale, self.ratio)
        if self.draw_flip():
            pixels = pixels.flip(1)
        if self.color_transforms:
            colored = Image.fromarray(pixels.numpy())
            for transform in self.color_transforms:
                colored = transform(colored)
            pixels = torch.from_numpy(np.array(colored))
        return pixels

    def stack(self, made: Sequence[Any]) -> Any:
        """Combine results of `__call__` into one batch, whose `.to(device)` returns (B, H, W, C)."""
        return self.buffers.stack(made)

    def draw_flip(self) -> bool:
        """Draw whether to flip an image."""
        return random.random() < self.hflip

    def on_device(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Normalize a batch and apply random erasing: (B, H, W, C) → (B, C, H, W), fp32.

        The seed of each image determines what is erased in it.
        """
        normalized = self.normalize(images)
        erase = RandomErasing(probability=1, mode="pixel", device=str(images.device))
        with one_thread():
            for image, seed in zip(normalized, seeds, strict=True):
                random.seed(f"erase {seed}")  # the prefix makes it differ from the worker's random numbers
                if random.random() < self.erase_prob:
                    seed_torch(seed, images.device)
                    erase(image)
        return normalized


def gray_solarize_or_blur(image: Image.Image) -> Image.Image:
    """3-Augment (Touvron et al., DeiT III, arXiv 2204.07118, section 3.2): one of three operations at random."""
    match random.choice(("gray", "solarize", "blur")):
        case "gray":
            return ImageOps.grayscale(image).convert("RGB")
        case "solarize":
            return ImageOps.solarize(image, threshold=128)
        case _:
            return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed the device's generator and no other: torch.manual_seed takes 0.2 ms, for all devices."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    elif device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
    else:
        torch.manual_seed(seed)
