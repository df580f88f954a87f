"""An encoded image file, and how it is decoded: by Pillow, or as an array if it is no photograph of 8 bits."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .errors import InputError
from .orientation import MARKS, orientation_of, upright
from .pixel_arrays import TIFF_BITS, MissingPackageError, is_deep_png, is_npy, is_tiff, read_array, with_channels
from .preprocessing import PIL_MODES, Preprocessing


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
        return self.converted("RGB")

    def converted(self, mode: str) -> Image.Image:
        """Decode the image with Pillow to "RGB", "L" (gray) or "RGBA". See `rgb`."""
        if is_npy(self.data):
            array = self.array(3)
            if array.dtype != np.uint8 or array.shape[2:] not in ((1,), (3,)):
                more = "data.value_range takes floats, data.bit_depth integers of more than 8 bits"
                raise self.broken(
                    f"it holds {array.dtype} of shape {array.shape}, not uint8 with 1 or 3 channels; {more}"
                )
            return Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array).convert(mode)
        with self.opened() as image:
            return self.to_8_bits(upright(image)).convert(mode)

    def picture(self, preprocessing: Preprocessing) -> "Image.Image | np.ndarray":
        """Decode the image to what `preprocessing` takes: photographs to a Pillow image, all others to (H, W, C).

        Raises:
            BrokenImageError: The image cannot be decoded, has more than `max_pixels`, or other channels.
            InputError: A package is missing that reads this format.
        """
        wanted = preprocessing.channels
        in_8_bits = preprocessing.bit_depth == 8 and preprocessing.value_range is None
        if in_8_bits and wanted in PIL_MODES and not self.holds_bands(wanted):
            return self.converted(PIL_MODES[wanted])
        array = self.array(wanted)
        if array.ndim != 3 or array.shape[-1] != wanted:
            found = f"{array.shape[-1]} channels" if array.ndim == 3 else f"the shape {array.shape}"
            raise self.broken(f"it has {found}, not the {wanted} of data.channels")
        return array

    def array(self, channels: int) -> np.ndarray:
        """Decode the image to (H, W, C) in the type of the file."""
        self.require_upright()
        try:
            array = read_array(self.data, channels, self.max_pixels)
        except MissingPackageError as error:
            raise MissingPackageError(f"{self.origin}: {error}") from None
        except MemoryError:
            raise self.too_little_memory() from None
        except Exception as error:  # of every kind for damaged files
            raise self.broken(str(error) or type(error).__name__) from None
        if array is not None:
            return array
        with self.opened() as image:
            image = upright(image)
            return with_channels(np.array(image.convert("RGB") if image.mode == "P" else image))

    def require_upright(self) -> None:
        """Refuse a PNG with 16 bits that is not upright, as `read_tiff` does: Pillow does not read its pixels."""
        if is_deep_png(self.data) and any(mark in self.data for mark in MARKS):
            with self.opened() as image:
                orientation = orientation_of(image)
            if orientation != 1:
                raise self.broken(f"its orientation is {orientation}; save it upright")

    def holds_bands(self, channels: int) -> bool:
        """Whether Pillow would not see all channels of the file: they are pages or bands of a TIFF, or in an NPY."""
        if not is_tiff(self.data) or channels == 4:  # to Pillow a fourth band is alpha, or black
            return channels == 4 and (is_tiff(self.data) or is_npy(self.data))
        try:
            with self.opened() as image:
                pages = getattr(image, "n_frames", 1)
                return len(image.getbands()) == 1 and pages > 1 and (pages == 3 or channels != 3)
        except BrokenImageError:  # Pillow does not know some kinds of TIFF
            return True

    def has_more_than_8_bits(self) -> bool:
        """Whether a channel has more than 8 bits, as the file's header says."""
        if is_deep_png(self.data):
            return True
        if is_npy(self.data):
            return False  # an array of another type than uint8 is refused with 8 bits
        with self.opened() as image:
            bits = getattr(image, "tag_v2", {}).get(TIFF_BITS, (8,))
            return image.mode.startswith("I") or max(bits if isinstance(bits, tuple) else (bits,)) > 8

    def pixels(self, preprocessing: Preprocessing) -> Tensor:
        """Decode the image and resize it: `Preprocessing.pixels`, with errors that name the file."""
        return self.named(lambda: preprocessing.pixels(self.picture(preprocessing)))

    def whole(self, preprocessing: Preprocessing) -> Tensor:
        """Decode the image to (H, W, C) in the type of `preprocessing`, without resizing it."""
        return self.named(lambda: preprocessing.as_tensor(self.picture(preprocessing)))

    def named(self, make: Callable[[], Tensor]) -> Tensor:
        try:
            return make()
        except (BrokenImageError, NotEnoughMemoryError, MissingPackageError):
            raise
        except InputError as error:
            raise self.broken(str(error)) from None

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
            raise self.too_little_memory() from None
        except Exception as error:  # Pillow's plugins raise errors of every kind for damaged files
            raise self.broken(str(error) or type(error).__name__) from None

    def to_8_bits(self, image: Image.Image) -> Image.Image:
        """Convert 16 bits per pixel to 8 bits; return other images unchanged. Pillow itself would clip values to 255.

        Raises:
            BrokenImageError: The range of the values is not that of 16 bits: floats, integers of more than 16 bits, or
                8-bit values that are stored in more bits, which would become a black image.
        """
        if image.mode == "F":
            raise self.broken(
                "it has floating-point pixels, whose range is unknown; give data.value_range, "
                "or convert it to 8 or 16 bits"
            )
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

    def too_little_memory(self) -> NotEnoughMemoryError:
        return NotEnoughMemoryError(
            f"{self.origin}: memory is too short to decode it; lower data.workers, or data.max_pixels"
        )

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
