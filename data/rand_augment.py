"""Faster shears and translations for timm's RandAugment: Pillow's result to within 1 of 255, in a fifth of the time.

Pillow interpolates each pixel of an affine transform from 16 pixels. A horizontal shear or translation only shifts
whole rows. So 4 pixels of the same row are enough, and their weights are the same for the whole row. A vertical shear
or translation does the same to the rows of the transposed image.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from timm.data.auto_augment import RandAugment

Fill = tuple[int, int, int]
TRANSPOSE = Image.Transpose.TRANSPOSE
ROUNDING = 1 / 512
"""Added before the fraction is cut off. Pillow computes in fp64; in fp32 a value of 7 may come out as 6.99999."""


def use_fast_shifts(transforms: Iterable[Any]) -> None:
    """Replace the shears and translations of every RandAugment among the transforms, in place.

    Operations are replaced only if their interpolation is always bicubic. timm's default draws it at random.
    """
    for transform in transforms:
        if isinstance(transform, RandAugment):
            for op in transform.ops:
                if op.kwargs["resample"] == Image.Resampling.BICUBIC:
                    op.aug_fn = FAST_OPERATIONS.get(op.name, op.aug_fn)


# The signatures of the next four functions are those of timm.data.auto_augment.


def shear_x(image: Image.Image, factor: float, *, fillcolor: Fill, resample: Any) -> Image.Image:
    return shift_rows(image, factor * (np.arange(image.height) + 0.5), fillcolor)


def shear_y(image: Image.Image, factor: float, *, fillcolor: Fill, resample: Any) -> Image.Image:
    return shear_x(image.transpose(TRANSPOSE), factor, fillcolor=fillcolor, resample=resample).transpose(TRANSPOSE)


def translate_x(image: Image.Image, share: float, *, fillcolor: Fill, resample: Any) -> Image.Image:
    return shift_rows(image, np.full(image.height, share * image.width), fillcolor)


def translate_y(image: Image.Image, share: float, *, fillcolor: Fill, resample: Any) -> Image.Image:
    return translate_x(image.transpose(TRANSPOSE), share, fillcolor=fillcolor, resample=resample).transpose(TRANSPOSE)


FAST_OPERATIONS: dict[str, Callable[..., Image.Image]] = {
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateXRel": translate_x,
    "TranslateYRel": translate_y,
}
"""timm's name of an operation → its faster replacement."""


def shift_rows(image: Image.Image, shift: np.ndarray, fill: Fill) -> Image.Image:
    """Shift each row of an RGB image to the left by a number of pixels, with bicubic interpolation.

    The value at (y, x) of the output is the input's at (y, x + shift[y]). Few values differ from Pillow's, and those
    by 1.

    Args:
        image: An RGB image.
        shift: (height,), fp64. The shift of each row in pixels; negative values shift to the right.
        fill: The color of the output where x + shift[y] is outside the input.
    """
    W, H = image.size
    x, y = np.arange(W, dtype=np.int32), np.arange(H)
    # Split each shift into whole pixels, as far as they matter, and a fraction (used below).
    whole = np.floor(shift).clip(-W - 1, W + 1).astype(np.int32)
    # Extend the rows on both sides by their first and last pixel. Each pixel is one uint32.
    margin = int(np.abs(whole).max()) + 2
    pixels = np.frombuffer(image.tobytes("raw", "RGBX"), dtype=np.uint32).reshape(H, W)
    wide = np.empty((H, W + 2 * margin), dtype=np.uint32)
    wide[:, :margin], wide[:, margin:-margin], wide[:, -margin:] = pixels[:, :1], pixels, pixels[:, -1:]
    # Take from each row the W + 3 pixels that are needed: from one before to two after the whole shift.
    near = sliding_window_view(wide, W + 3, axis=1)[y, margin + whole - 1]
    # Interpolate: sum four copies of the row, each one pixel further, with the weights of the fraction.
    values = torch.from_numpy(near.view(np.uint8).astype(np.float32))
    weights = torch.from_numpy(cubic_weights(shift - np.floor(shift)))
    shifted = values[:, : 4 * W] * weights[0]
    for number in (1, 2, 3):
        shifted.addcmul_(values[:, 4 * number : 4 * (number + W)], weights[number])
    out = shifted.add_(ROUNDING).clamp_(0, 255).numpy().astype(np.uint8).view(np.uint32)
    # Fill what comes from outside the input. As in Pillow, the nearest pixel decides.
    nearest = np.floor(shift + 0.5).clip(-W - 1, W + 1).astype(np.int32)[:, None]
    np.copyto(out, np.array([*fill, 0], dtype=np.uint8).view(np.uint32), where=(x < -nearest) | (x >= W - nearest))
    return Image.frombytes("RGB", (W, H), out.data, "raw", "RGBX")


def cubic_weights(d: np.ndarray) -> np.ndarray:
    """Return the weights of the pixels at -1, 0, 1 and 2 for positions d in [0, 1): (H,) → (4, H, 1), fp32.

    This is Keys's kernel (Cubic convolution interpolation, 1981) with a = -1, as in Pillow's Geometry.c.
    """
    square, cube = d * d, d * d * d
    weights = np.stack((2 * square - d - cube, 1 - 2 * square + cube, d + square - cube, cube - square))
    return weights.astype(np.float32)[..., None]
