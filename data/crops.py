"""The crop of a training image: chosen before anything is decoded, cut out, and resized once."""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .encoded_image import EncodedImage, rgb
from .jpeg import SCALES, read_jpeg

ATTEMPTS = 10
KEPT = 2
"""A JPEG is decoded at a part of its size only where its crop remains so many times as large as the output."""


class Box(NamedTuple):
    """In pixels of the image."""

    top: int
    left: int
    height: int
    width: int


def random_box(height: int, width: int, scale: Sequence[float], ratio: Sequence[float]) -> Box:
    """A box of a uniform share of the image's area and of a log-uniform width / height, anywhere that it fits.

    The distribution is RandomResizedCrop's (torchvision, timm). Where none of ten fits: the middle, as much of it as
    the ratios allow. Draws from Python's generator.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(ATTEMPTS):
        area = random.uniform(*scale) * height * width
        aspect = math.exp(random.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(random.randint(0, height - h), random.randint(0, width - w), h, w)
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def random_resized_crop(
    image: Image.Image | EncodedImage, size: int, scale: Sequence[float], ratio: Sequence[float], interpolation: str
) -> Tensor:
    """A random box of the image as (size, size, 3), uint8, resized with antialiasing."""
    jpeg = read_jpeg(image) if isinstance(image, EncodedImage) else None
    if jpeg is None:
        pixels = np.array(rgb(image))  # a copy: torch wants to be allowed to write
        return resize(cut(pixels, random_box(pixels.shape[0], pixels.shape[1], scale, ratio)), size, interpolation)
    box = random_box(jpeg.height, jpeg.width, scale, ratio)
    shrunk = next((s for s in SCALES if min(box.height, box.width) >= KEPT * s * size), 1)
    rows = jpeg.rows(box.top + box.height, shrunk)
    if rows is None:
        return resize(cut(np.array(jpeg.image.rgb()), box), size, interpolation)
    return resize(cut(rows, shrink(box, shrunk)), size, interpolation)


def shrink(box: Box, by: int) -> Box:
    """The same box of the image at 1 / by of its size."""
    top, left = round(box.top / by), round(box.left / by)
    return Box(top, left, round((box.top + box.height) / by) - top, round((box.left + box.width) / by) - left)


def cut(pixels: np.ndarray, box: Box) -> Tensor:
    return torch.from_numpy(pixels[box.top : box.top + box.height, box.left : box.left + box.width])


def resize(pixels: Tensor, size: int, interpolation: str) -> Tensor:
    """(H, W, 3) → (size, size, 3), uint8."""
    if pixels.shape[:2] == (size, size):
        return pixels
    image = pixels[None].permute(0, 3, 1, 2)  # in this order torch sees that the channels lie last, and leaves them so
    return F.interpolate(image, (size, size), mode=interpolation, antialias=True)[0].permute(1, 2, 0)
