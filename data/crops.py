"""Random resized crops: chooses them from the image's size, decodes once and only what they need, resizes each once."""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from xcit.encoded_image import EncodedImage, rgb

from .jpeg import SCALES, read_jpeg

ATTEMPTS = 10
"""How many boxes are drawn before the center crop is taken."""
MIN_OVERSAMPLING = 2
"""A JPEG is decoded at reduced size only if its crop remains this many times as large as the output."""


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(height: int, width: int, scale: Sequence[float], ratio: Sequence[float]) -> Box:
    """Draw a crop with the distribution of RandomResizedCrop in torchvision and timm, from Python's generator.

    The share of the area is uniform and the aspect ratio log-uniform. If none of ten boxes fits into the image, the
    result is the largest center crop whose aspect ratio is in range.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        scale: Range of the crop's share of the image's area.
        ratio: Range of the crop's aspect ratio, width / height.
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


class Crop(NamedTuple):
    """A random crop to make."""

    size: int
    """Height and width of the result in pixels."""
    scale: Sequence[float]
    """Range of the crop's share of the image's area."""


def random_resized_crop(
    image: Image.Image | EncodedImage, size: int, scale: Sequence[float], ratio: Sequence[float], interpolation: str
) -> Tensor:
    """Crop the image at random and resize the crop with antialiasing. Return (size, size, 3), uint8."""
    return random_resized_crops(image, [Crop(size, scale)], ratio, interpolation)[0]


def random_resized_crops(
    image: Image.Image | EncodedImage, crops: Sequence[Crop], ratio: Sequence[float], interpolation: str
) -> list[Tensor]:
    """Make several random crops of an image that is decoded once. Return (size, size, 3), uint8, for each.

    Args:
        image: A Pillow image, or an image file.
        crops: The crops to make.
        ratio: Range of the aspect ratio of all crops, width / height.
        interpolation: "bicubic" or "bilinear".
    """
    jpeg = read_jpeg(image) if isinstance(image, EncodedImage) else None
    # Other formats: decode the whole image, then crop.
    if jpeg is None:
        pixels = np.array(rgb(image))  # copies, since torch needs a writable array
        boxes = [random_box(pixels.shape[0], pixels.shape[1], crop.scale, ratio) for crop in crops]
        reduction = 1
    # JPEGs: choose the crops and the largest reduction that suits all of them, then decode the rows of the crops.
    else:
        boxes = [random_box(jpeg.height, jpeg.width, crop.scale, ratio) for crop in crops]
        oversampling = min(min(box.height, box.width) / crop.size for box, crop in zip(boxes, crops, strict=True))
        reduction = next((s for s in SCALES if oversampling >= MIN_OVERSAMPLING * s), 1)
        rows = jpeg.decode_rows(max(box.top + box.height for box in boxes), reduction)
        if rows is None:
            reduction = 1
        pixels = np.array(jpeg.image.rgb()) if rows is None else rows
    return [
        resize(cut(pixels, reduce_box(box, reduction)), crop.size, interpolation)
        for box, crop in zip(boxes, crops, strict=True)
    ]


def reduce_box(box: Box, reduction: int) -> Box:
    """Return the box in the coordinates of the image at 1 / reduction of its size."""
    top, left = round(box.top / reduction), round(box.left / reduction)
    bottom, right = round((box.top + box.height) / reduction), round((box.left + box.width) / reduction)
    return Box(top, left, bottom - top, right - left)


def cut(pixels: np.ndarray, box: Box) -> Tensor:
    """Return the pixels within the box: (H, W, 3) → (box.height, box.width, 3), without a copy."""
    return torch.from_numpy(pixels[box.top : box.top + box.height, box.left : box.left + box.width])


def resize(pixels: Tensor, size: int, interpolation: str) -> Tensor:
    """Resize with antialiasing: (H, W, 3) → (size, size, 3), in the type of the input."""
    if pixels.shape[:2] == (size, size):
        return pixels
    # Permuted after the batch dimension is added, torch recognizes the channels_last memory format and keeps it.
    image = pixels[None].permute(0, 3, 1, 2)
    return F.interpolate(image, (size, size), mode=interpolation, antialias=True)[0].permute(1, 2, 0)
