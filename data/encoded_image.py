"""An image as it lies in a file, and the plain way to its pixels: Pillow's, for every format."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import BrokenImageError

MAX_PIXELS = 178_956_970
"""More are a decompression bomb: Pillow's own limit."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """The bytes of a file, and where they are from: a path, say, for what is said about them."""

    data: bytes
    origin: str

    def rgb(self) -> Image.Image:
        """All its pixels, upright as its EXIF orientation has it; of an animation the first frame.

        Raises:
            BrokenImageError: it cannot be decoded, or has more than MAX_PIXELS.
        """
        try:
            with Image.open(io.BytesIO(self.data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise self.broken(f"{image.width} × {image.height} pixels are a decompression bomb")
                return eight_bits(ImageOps.exif_transpose(image)).convert("RGB")
        except UnidentifiedImageError:  # whose message holds an address: one image would be told of as many
            raise self.broken("in no format that is known") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all that Pillow may raise
            if isinstance(error, BrokenImageError):
                raise
            raise self.broken(str(error) or type(error).__name__) from None

    def broken(self, reason: str) -> BrokenImageError:
        return BrokenImageError(f"{self.origin}: cannot be decoded ({' '.join(reason.split())})")


def eight_bits(image: Image.Image) -> Image.Image:
    """Sixteen bits a pixel as eight: Pillow would cut off what is above 255."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8))


def rgb(image: Image.Image | EncodedImage) -> Image.Image:
    return image.rgb() if isinstance(image, EncodedImage) else image
