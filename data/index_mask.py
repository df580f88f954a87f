"""An encoded mask of class indices, and the labels that its values stand for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from xcit.encoded_image import BrokenImageError, EncodedImage
from xcit.orientation import EXIF_ORIENTATION, upright

IGNORED = -1
"""The label of pixels that belong to no class: they count neither in the loss nor in the metrics."""
NOT_ACCEPTED = -2
VALUES = 2**16
"""The values that a pixel of a mask may have: those of 16 bits."""
GRAY_STEPS = {"L;2": 85, "L;4": 17}
"""Pillow multiplies gray values of 2 and 4 bits, which it reads as 8 bits. It does not multiply palette indices."""


class Labels:
    """Which class each value of a mask stands for.

    Args:
        classes: Value → index of the class.
        ignored: The values that stand for `IGNORED`.
    """

    def __init__(self, classes: Mapping[int, int], ignored: Iterable[int]) -> None:
        self.table = np.full(VALUES, NOT_ACCEPTED, dtype=np.int16)
        self.table[list(classes)] = list(classes.values())
        self.ignored = sorted(ignored)
        self.table[self.ignored] = IGNORED
        self.values = sorted(classes)

    def of(self, values: np.ndarray) -> np.ndarray:
        """Return the label of each value, int16: the index of a class, `IGNORED` or `NOT_ACCEPTED`."""
        return self.table[values]

    def __str__(self) -> str:
        """As "1 to 150, or 0, which is ignored"."""
        ignored = f", or {ranges(self.ignored)}, which {'is' if len(self.ignored) == 1 else 'are'} ignored"
        return ranges(self.values) + (ignored if self.ignored else "")


@dataclass(frozen=True, slots=True)
class IndexMask:
    """A mask of class indices: a PNG file with a palette, or with gray values of up to 16 bits."""

    file: EncodedImage
    labels: Labels
    image: EncodedImage
    """The image that the mask belongs to."""

    def decode(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return the label of each pixel of the upright image: (H, W), int16, `IGNORED` or the index of a class.

        A mask may be drawn on the upright photograph, as most programs show it, or on the photograph as it is stored.
        The size tells which one. If both have the same size, the mask is taken as upright.

        Args:
            size: (H, W) of the upright image. None decodes the image to find it out.

        Raises:
            BrokenImageError: The mask cannot be read, its size is not the image's, or it holds other values than
                `labels` accepts.
        """
        if size is None:
            size = self.image.rgb().size[::-1]
        # A mask of the image's size is as large as the limit for images allows.
        with replace(self.file, max_pixels=max(self.file.max_pixels, size[0] * size[1])).opened() as opened:
            if sorted(opened.size) != sorted(size):
                raise self.of_another_size(opened, size)
            values = self.values(opened)
        if values.shape != size:
            values = self.turned(values)
            if values.shape != size:
                raise self.of_another_size(opened, size)
        labels = self.labels.of(values)
        wrong = labels == NOT_ACCEPTED
        if wrong.any():
            found = np.unique(values[wrong])
            others = f" and {len(found) - 1} other wrong values" if len(found) > 1 else ""
            raise BrokenImageError(f"{self.file.origin}: holds the value {found[0]}{others}; must be {self.labels}")
        return labels

    def values(self, opened: Image.Image) -> np.ndarray:
        """Return the indices as they are stored: (H, W), integers of 0 to 65535."""
        if opened.mode not in ("1", "L", "P", "I") and not opened.mode.startswith("I;16"):
            raise BrokenImageError(
                f"{self.file.origin}: is an image of mode {opened.mode}; a mask must hold one index a pixel, as "
                "palette or gray values"
            )
        stored_as = [tile[3] for tile in getattr(opened, "tile", [])]  # empty once the pixels are read
        step = GRAY_STEPS.get(stored_as[0], 1) if opened.mode == "L" and opened.format == "PNG" else 1
        values = np.asarray(opened)
        if opened.mode == "I" and not 0 <= values.min() <= values.max() < VALUES:
            raise BrokenImageError(f"{self.file.origin}: holds values of more than 16 bits")
        return values.astype(np.uint8) // step if values.dtype.itemsize == 1 else values

    def turned(self, values: np.ndarray) -> np.ndarray:
        """Return the values, turned as the image's EXIF orientation turns the image."""
        with self.image.opened() as photograph:
            photograph.load()
            orientation = photograph.getexif().get(EXIF_ORIENTATION, 1)
        mask = Image.fromarray(values)
        mask.getexif()[EXIF_ORIENTATION] = orientation
        return np.asarray(upright(mask))

    def of_another_size(self, opened: Image.Image, size: tuple[int, int]) -> BrokenImageError:
        return BrokenImageError(
            f"{self.file.origin}: has {opened.height} × {opened.width} pixels (height × width); must be {size[0]} × "
            f"{size[1]}, as {self.image.origin} has"
        )


def ranges(values: Iterable[int]) -> str:
    """As "0 to 3, 7 or 9"; the values rise."""
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][1] == value - 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    found = [str(low) if low == high else f"{low} to {high}" for low, high in runs]
    return " or ".join(filter(None, [", ".join(found[:-1]), *found[-1:]]))
