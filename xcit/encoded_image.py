"""An encoded image file, and how Pillow decodes it. This path works for every image format."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from .errors import InputError
from .orientation import upright


class BrokenImageError(InputError):
    """An image cannot be decoded."""

    of_one_process = True
    """Under DDP only the process that loads the image raises it."""


class NotEnoughMemoryError(InputError):
    """An image cannot be decoded because memory is short. The cause is the machine: the image is not replaced."""

    of_one_process = True
    exit_status = 1


# Pillow warns at half of its limit. `EncodedImage.max_pixels` is the only limit here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

MAX_PIXELS = 178_956_970
"""The default limit of an image's pixels. Pillow raises an error at the same limit."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """The content of an image file."""

    data: bytes
    origin: str
    """Names the image in error messages: the path of its file, for example."""
    max_pixels: int = MAX_PIXELS
    """Images with more pixels are refused, because a file of 0.5 MB may need gigabytes of memory."""

    def rgb(self) -> Image.Image:
        """Decode the image to RGB with Pillow. Apply its EXIF orientation. Of an animation, take the first frame.

        Transparency is ignored, as timm and torchvision do.

        Raises:
            BrokenImageError: The image cannot be decoded, or it has more than `max_pixels`.
        """
        with self.opened() as image:
            return self.to_8_bits(upright(image)).convert("RGB")

    @contextmanager
    def opened(self) -> Iterator[Image.Image]:
        """Open the image with Pillow. Pillow reads the pixels when they are needed.

        Raises:
            BrokenImageError: The image cannot be opened, it has more than `max_pixels`, or the block raised an error.
            NotEnoughMemoryError: Memory is short.
        """
        try:
            with pillow_limit(self.max_pixels), Image.open(io.BytesIO(self.data)) as image:
                if image.width * image.height > self.max_pixels:
                    raise Image.DecompressionBombError
                yield image
        except InputError:
            raise
        except Image.DecompressionBombError:
            raise self.broken(f"it has more pixels than data.max_pixels={self.max_pixels} allows") from None
        except UnidentifiedImageError:
            # Pillow's message contains an object's address. It would differ each time, and an image is reported once.
            raise self.broken("unknown image format") from None
        except MemoryError:
            raise NotEnoughMemoryError(
                f"{self.origin}: memory is too short to decode it; lower data.workers, or data.max_pixels"
            ) from None
        except Exception as error:  # Pillow's plugins raise errors of every kind for damaged files
            raise self.broken(str(error) or type(error).__name__) from None

    def to_8_bits(self, image: Image.Image) -> Image.Image:
        """Convert 16 bits per pixel to 8 bits; return other images unchanged. Pillow itself would clip values to 255.

        Raises:
            BrokenImageError: The range of the values is not that of 16 bits: floats, integers of more than 16 bits, or
                8-bit values that are stored in more bits, which would become a black image.
        """
        if image.mode == "F":
            raise self.broken("it has floating-point pixels, whose range is unknown; convert it to 8 or 16 bits")
        if not image.mode.startswith("I"):
            return image
        values = np.asarray(image)
        if not 0 <= values.min() <= values.max() <= 0xFFFF:
            raise self.broken(f"its pixels are from {values.min()} to {values.max()}; convert it to 8 or 16 bits")
        if 0 < values.max() <= 0xFF:
            bits = "16" if image.mode.startswith("I;16") else "32"
            raise self.broken(
                f"its {bits}-bit pixels are at most {values.max()}, as 8-bit values; convert it to 8 bits"
            )
        return Image.fromarray((values >> 8).astype(np.uint8))

    def broken(self, reason: str) -> BrokenImageError:
        """Return the error for this image."""
        return BrokenImageError(f"{self.origin}: cannot be decoded ({' '.join(reason.split())})")


@contextmanager
def pillow_limit(max_pixels: int) -> Iterator[None]:
    """Set Pillow's own limit, which also holds for images within a file. Pillow raises at twice its number."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def rgb(image: Image.Image | EncodedImage) -> Image.Image:
    """Decode an encoded image. Return a Pillow image unchanged."""
    return image.rgb() if isinstance(image, EncodedImage) else image
