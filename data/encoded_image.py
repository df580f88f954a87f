"""An encoded image file, and how Pillow decodes it. This path works for every image format."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from xcit.errors import InputError


class BrokenImageError(InputError):
    """An image cannot be decoded."""

    of_one_process = True
    """Under DDP only the process that loads the image raises it."""


MAX_PIXELS = 178_956_970
"""Larger images are refused as decompression bombs. Pillow raises an error at the same limit."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """The content of an image file."""

    data: bytes
    origin: str
    """Names the image in error messages: the path of its file, for example."""

    def rgb(self) -> Image.Image:
        """Decode the image to RGB with Pillow. Apply its EXIF orientation. Of an animation, take the first frame.

        Raises:
            BrokenImageError: The image cannot be decoded, or it has more than MAX_PIXELS.
        """
        try:
            with Image.open(io.BytesIO(self.data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise self.broken(f"{image.width} × {image.height} pixels are a decompression bomb")
                return to_8_bits(ImageOps.exif_transpose(image)).convert("RGB")
        except UnidentifiedImageError:
            # Pillow's message contains an object's address. It would differ each time, and an image is reported once.
            raise self.broken("unknown image format") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all that Pillow may raise
            if isinstance(error, BrokenImageError):
                raise
            raise self.broken(str(error) or type(error).__name__) from None

    def broken(self, reason: str) -> BrokenImageError:
        """Return the error for this image."""
        return BrokenImageError(f"{self.origin}: cannot be decoded ({' '.join(reason.split())})")


def to_8_bits(image: Image.Image) -> Image.Image:
    """Convert 16 bits per pixel to 8 bits; return other images unchanged. Pillow itself would clip values to 255."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8))


def rgb(image: Image.Image | EncodedImage) -> Image.Image:
    """Decode an encoded image. Return a Pillow image unchanged."""
    return image.rgb() if isinstance(image, EncodedImage) else image
