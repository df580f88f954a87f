"""Random resized crops: chooses them from the image's size, decodes once and only what they need, resizes each once."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from xcit.encoded_image import EncodedImage, rgb
from xcit.preprocessing import Preprocessing

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

    size: tuple[int, int]
    """(height, width) of the result in pixels."""
    scale: Sequence[float]
    """Range of the crop's share of the image's area."""


def random_resized_crop(
    image: Image.Image | EncodedImage, preprocessing: Preprocessing, scale: Sequence[float], ratio: Sequence[float]
) -> Tensor:
    """Crop the image at random and resize the crop with antialiasing. Return (H, W, C), in the type of the pixels."""
    return random_resized_crops(image, [Crop(preprocessing.size, scale)], ratio, preprocessing)[0]


def random_resized_crops(
    image: Image.Image | EncodedImage, crops: Sequence[Crop], ratio: Sequence[float], preprocessing: Preprocessing
) -> list[Tensor]:
    """Make several random crops of an image that is decoded once. Return (H, W, C) for each, in the pixels' type.

    Args:
        image: A Pillow image, or an image file.
        crops: The crops to make.
        ratio: Range of the aspect ratio of all crops, width / height. It is relative to that of the result with
            resize="crop", otherwise relative to that of the image.
        preprocessing: How images are read and resized. With resize="letterbox" a crop keeps its aspect ratio, and is
            padded to the size; otherwise it is stretched to the size.
    """

    def draw(height: int, width: int) -> list[Box]:
        shapes = [crop.size if preprocessing.resize == "crop" else (height, width) for crop in crops]
        ratios = [[bound * (w / h) for bound in ratio] for h, w in shapes]
        return [random_box(height, width, crop.scale, own) for crop, own in zip(crops, ratios, strict=True)]

    jpeg = read_jpeg(image) if isinstance(image, EncodedImage) and preprocessing.is_rgb_of_8_bits else None
    # Other formats: decode the whole image, then crop.
    if jpeg is None:
        pixels = whole(image, preprocessing)
        boxes = draw(*pixels.shape[:2])
        reduction = 1
    # JPEGs: choose the crops and the largest reduction that suits all of them, then decode the rows of the crops.
    else:
        boxes = draw(jpeg.height, jpeg.width)
        oversampling = min(
            min(box.height / crop.size[0], box.width / crop.size[1]) for box, crop in zip(boxes, crops, strict=True)
        )
        reduction = next((s for s in SCALES if oversampling >= MIN_OVERSAMPLING * s), 1)
        rows = jpeg.decode_rows(max(box.top + box.height for box in boxes), reduction)
        if rows is None:
            reduction = 1
        pixels = whole(jpeg.image, preprocessing) if rows is None else torch.from_numpy(rows)
    return [
        fit(cut(pixels, reduce_box(box, reduction)), replace(preprocessing, size=crop.size, crop_ratio=1.0))
        for box, crop in zip(boxes, crops, strict=True)
    ]


def whole(image: Image.Image | EncodedImage, preprocessing: Preprocessing) -> Tensor:
    """Decode the whole image to (H, W, C) in the type of the pixels."""
    if preprocessing.is_rgb_of_8_bits:
        return torch.from_numpy(np.array(rgb(image)))  # copies, since torch needs a writable array
    if isinstance(image, EncodedImage):
        return image.whole(preprocessing)
    return preprocessing.as_tensor(preprocessing.converted(image))


def fit(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Resize a crop, (h, w, C), to the size of the result: stretched, or with padding (letterbox)."""
    if preprocessing.resize == "letterbox":
        size = preprocessing.resized_size(*pixels.shape[:2])
        return preprocessing.cut_or_pad(resize(pixels, size, preprocessing))
    return resize(pixels, preprocessing.size, preprocessing)


def reduce_box(box: Box, reduction: int) -> Box:
    """Return the box in the coordinates of the image at 1 / reduction of its size."""
    top, left = round(box.top / reduction), round(box.left / reduction)
    bottom, right = round((box.top + box.height) / reduction), round((box.left + box.width) / reduction)
    return Box(top, left, bottom - top, right - left)


def cut(pixels: Tensor, box: Box) -> Tensor:
    """Return the pixels within the box: (H, W, C) → (box.height, box.width, C), without a copy."""
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


def resize(pixels: Tensor, size: tuple[int, int], preprocessing: Preprocessing) -> Tensor:
    """Resize with antialiasing: (H, W, C) → (*size, C), in the type of the pixels."""
    if pixels.shape[:2] == size:
        return pixels
    # Permuted after the batch dimension is added, torch recognizes the channels_last memory format and keeps it.
    image = pixels[None].permute(0, 3, 1, 2)
    # torch resizes integers only of 8 bits, and only on a CPU.
    is_resized_as_it_is = pixels.dtype == torch.uint8 and pixels.device.type == "cpu"
    image = image if is_resized_as_it_is else image.float()
    resized = F.interpolate(image, size, mode=preprocessing.interpolation, antialias=True)[0].permute(1, 2, 0)
    return resized if is_resized_as_it_is else preprocessing.as_pixels(resized)
