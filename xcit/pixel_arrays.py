"""Reads image files as arrays, for images that are no photographs: many bands or pages, more than 8 bits, floats.

NPY files are read by numpy, TIFF by tifffile, PNG with 16 bits by imagecodecs, and all others by Pillow. Pillow would
take the first page of a TIFF alone, and 8 of the 16 bits of a color PNG. It reads all bits of a gray PNG, where
imagecodecs is not installed.
"""

import io
import math
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import InputError


class MissingPackageError(InputError):
    """A package that reads a format is not installed."""

    of_one_process = True


NPY_MAGIC = b"\x93NUMPY"
TIFF_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_BITS, PNG_COLORS = 24, 25
"""Offsets in bytes of the bits of a channel and of the kind of colors in a PNG."""
PNG_GRAY, PNG_WITH_ALPHA = 0, (4, 6)
TIFF_BITS = 258
"""The number of TIFF's tag for the bits of a channel."""
TIFF_ORIENTATION = 274
"""The number of TIFF's tag for the orientation. Its value is 1 for an upright image."""


def read_array(data: bytes, channels: int, max_pixels: int) -> np.ndarray | None:
    """(H, W, C) of an image file; None if Pillow should read it.

    Raises:
        MissingPackageError: the package that reads the format is not installed.
        Exception: of any kind for a damaged file, a ValueError for one with more than `max_pixels`.
    """
    if is_npy(data):
        return read_npy(data, channels, max_pixels)
    if is_tiff(data):
        return read_tiff(data, channels, max_pixels)
    if not is_deep_png(data) or (data[PNG_COLORS] == PNG_GRAY and find_spec("imagecodecs") is None):
        return None
    return read_deep_png(data, channels, max_pixels)


def is_npy(data: bytes) -> bool:
    return data.startswith(NPY_MAGIC)


def is_tiff(data: bytes) -> bool:
    return data.startswith(TIFF_MAGIC)


def is_deep_png(data: bytes) -> bool:
    """Whether it is a PNG with 16 bits in each channel."""
    return data.startswith(PNG_MAGIC) and len(data) > PNG_COLORS and data[PNG_BITS] == 16


def read_npy(data: bytes, channels: int, max_pixels: int) -> np.ndarray:
    """(H, W, C) of an NPY file of shape (H, W), (H, W, C), or (C, H, W) if C is `channels` and W is not.

    Raises:
        ValueError: the file is damaged, holds objects, or more than `max_pixels`.
    """
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    channels_first = len(shape) == 3 and shape[0] == channels != shape[2]
    require_few(shape[1:] if channels_first else shape[:2], max_pixels)
    if dtype.itemsize * math.prod(shape) > len(data) - file.tell():  # np.load would first take the memory for it
        raise ValueError(f"its data is cut off; its header says {shape} of {dtype}")
    array = np.load(io.BytesIO(data), allow_pickle=False)
    return with_channels(np.moveaxis(array, 0, -1) if channels_first else array)


def read_tiff(data: bytes, channels: int, max_pixels: int) -> np.ndarray:
    """(H, W, C) of a TIFF, where the channels are its samples, or its pages of one size, in their order in the file.

    Reduced copies of the image (overviews, thumbnails) are left out.

    Raises:
        MissingPackageError: tifffile or imagecodecs is not installed.
        ValueError: the image is not upright, has other channels, or has more than `max_pixels`.
    """
    tifffile = needed("tifffile")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        image = file.series[0]
        sizes = dict(zip(image.axes, image.shape, strict=True))
        require_few((sizes["Y"], sizes["X"]), max_pixels)
        orientation = image.pages[0].tags.get(TIFF_ORIENTATION)
        if orientation is not None and orientation.value != 1:
            raise ValueError(f"its orientation is {int(orientation.value)}; save it upright")
        found = math.prod(image.shape) // (sizes["Y"] * sizes["X"])
        if found != channels:  # before they are decoded, since a small file may hold any number of empty pages
            raise ValueError(f"it has {found} channels, not the {channels} of data.channels")
        array = image.asarray()
    height, width = image.axes.index("Y"), image.axes.index("X")
    others = [axis for axis in range(array.ndim) if axis not in (height, width)]
    return array.transpose(height, width, *others).reshape(sizes["Y"], sizes["X"], -1)


def read_deep_png(data: bytes, channels: int, max_pixels: int) -> np.ndarray:
    """(H, W, C), uint16, of a PNG with 16 bits in each channel. Transparency is ignored unless `channels` include it.

    Raises:
        MissingPackageError: imagecodecs is not installed.
        ValueError: it has more than `max_pixels`.
    """
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    require_few((height, width), max_pixels)
    array = with_channels(needed("imagecodecs").png_decode(data))
    has_unused_alpha = data[PNG_COLORS] in PNG_WITH_ALPHA and channels == array.shape[-1] - 1
    return array[..., :-1] if has_unused_alpha else array


def to_tensor(image: Any) -> Tensor:
    """The tensor of an array, or of a Pillow image.

    Raises:
        InputError: the image is of another type.
    """
    try:
        array = np.array(image)
        # torch does not take every size and byte order.
        wide = array.dtype.kind in "iu" and array.dtype.itemsize > 1
        swapped = array.dtype.kind == "f" and not array.dtype.isnative
        return torch.from_numpy(array.astype(np.int64) if wide else array.astype(np.float32) if swapped else array)
    except (TypeError, ValueError):
        accepted = "a Pillow image (of a file: PIL.Image.open), an array or a tensor"
        raise InputError(f"image of type {type(image).__name__}: must be {accepted}") from None


def with_channels(array: np.ndarray) -> np.ndarray:
    """(H, W) → (H, W, 1); (H, W, C) stays."""
    return array[..., None] if array.ndim == 2 else array


def require_few(size: Sequence[int], max_pixels: int) -> None:
    if math.prod(size) > max_pixels:
        raise ValueError(f"it has more pixels than data.max_pixels={max_pixels} allows")


def needed(package: str) -> Any:
    """A package of the extra `images`."""
    try:
        return import_module(package)
    except ImportError:
        raise MissingPackageError(f"needs {package} to be read; pip install 'xcit[images]'") from None
