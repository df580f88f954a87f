"""Decodes JPEGs on the GPU by torchcodec or torchvision. Workers choose the crops and pass the encoded files on."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xcit.encoded_image import EncodedImage
from xcit.errors import InputError
from xcit.preprocessing import Preprocessing

from .crops import Box, fit, random_box
from .jpeg import read_jpeg
from .transforms import TrainTransform


def require_decoding(where: str, device: torch.device) -> None:
    """Raise an InputError if data.decode=gpu cannot run: without a CUDA device or without nvjpeg."""
    if where == "cpu":
        return
    if device.type != "cuda":
        raise InputError(
            f"data.decode=gpu: needs a CUDA GPU, and this run is on the {device.type}; set data.decode=cpu"
        )
    # Decode a small JPEG, since neither library has a function that says whether it was built with nvjpeg.
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    try:
        decode([torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)], device)
    except (RuntimeError, OSError) as error:  # an OSError if a library of torchcodec cannot be loaded
        reason = str(error).splitlines()[0]
        raise InputError(f"data.decode=gpu: JPEGs cannot be decoded here ({reason}); set data.decode=cpu") from None


class EncodedCrop(NamedTuple):
    """A JPEG that is not decoded yet, with the crop and the flip that were drawn for it."""

    image: EncodedImage
    box: Box
    flip: bool

    def without_bytes(self) -> "EncodedCrop":
        return self._replace(image=replace(self.image, data=b""))


class GpuTrainTransform(TrainTransform):
    """A `TrainTransform` that decodes and resizes JPEGs on the device, with the same crops and flips.

    Images that `read_jpeg` does not accept are decoded in the workers, as in `TrainTransform`.

    Raises:
        InputError: The options contain an augmentation of pixels that runs in workers: RandAugment, color jitter or
            3-Augment. Or the images are not RGB with 8 bits that are cropped to squares.
    """

    def __init__(self, preprocessing: Preprocessing, **options: Any) -> None:
        super().__init__(preprocessing, **options)
        H, W = preprocessing.size
        if not preprocessing.is_rgb_of_8_bits or H != W or preprocessing.resize != "crop":
            raise InputError("data.decode=gpu: needs RGB images with 8 bits, cropped to squares; set data.decode=cpu")
        for name in ("rand_augment", "color_jitter", "three_augment"):
            if options.get(name):
                raise InputError(
                    f"data.decode=gpu: cannot be combined with augment.{name}={options[name]}, which needs "
                    "decoded pixels in the workers; set data.decode=cpu, or augment=light"
                )

    def __call__(self, image: Image.Image | EncodedImage) -> "Tensor | EncodedCrop":  # type: ignore[override]
        """Return an EncodedCrop for a JPEG, and pixels, (H, W, 3) in uint8, for any other image."""
        jpeg = read_jpeg(image) if isinstance(image, EncodedImage) else None
        if jpeg is None:
            return super().__call__(image)
        return EncodedCrop(jpeg.image, random_box(jpeg.height, jpeg.width, self.scale, self.ratio), self.draw_flip())

    def stack(self, made: Sequence[Tensor | EncodedCrop]) -> "EncodedBatch":
        crops = [item for item in made if isinstance(item, EncodedCrop)]
        return EncodedBatch(
            torch.from_numpy(np.frombuffer(bytearray().join(item.image.data for item in crops), dtype=np.uint8)),
            [len(item.image.data) for item in crops],
            [item if isinstance(item, Tensor) else item.without_bytes() for item in made],
            replace(self.preprocessing, crop_ratio=1.0),
        )


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """A batch whose JPEGs are decoded when it is moved to the device."""

    data: Tensor
    """(bytes,), uint8. The JPEGs' bytes, concatenated: one tensor is cheaper to send through shared memory."""
    lengths: list[int]
    """The number of bytes of each JPEG."""
    items: list[Tensor | EncodedCrop]
    """One item for each image of the batch: its pixels, or the crop of the next JPEG in `data`."""
    preprocessing: Preprocessing
    """Size of the output, and interpolation."""

    def to(self, device: torch.device, non_blocking: bool = False) -> Tensor:
        """Decode, crop and resize the images. Return them on the device as (B, H, W, 3), uint8.

        Raises:
            BrokenImageError: An image cannot be decoded.
        """
        jpegs = self.data.split(self.lengths)
        encoded = [item for item in self.items if isinstance(item, EncodedCrop)]
        # Decode all JPEGs of the batch in one call.
        try:
            decoded = decode(list(jpegs), device) if jpegs else []
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            # The error does not say which JPEG failed. Decode all of them with Pillow, which names a broken one.
            by_pillow = [replace(c.image, data=j.numpy().tobytes()).rgb() for j, c in zip(jpegs, encoded, strict=True)]
            decoded = [torch.from_numpy(np.array(image)).permute(2, 0, 1).to(device) for image in by_pillow]
        # Crop and resize them, then put them and the images decoded by workers into the order of the batch.
        crops = iter([self.crop(pixels, item) for pixels, item in zip(decoded, encoded, strict=True)])
        return torch.stack([item.to(device) if isinstance(item, Tensor) else next(crops) for item in self.items])

    def crop(self, image: Tensor, encoded: EncodedCrop) -> Tensor:
        """Crop, resize and flip one image: (3, h, w) → (H, W, 3), both uint8."""
        top, left, height, width = encoded.box
        resized = fit(image[:, top : top + height, left : left + width].permute(1, 2, 0), self.preprocessing)
        return resized.flip(1) if encoded.flip else resized


def decode(jpegs: list[Tensor], device: torch.device) -> list[Tensor]:
    """Decode JPEGs on the device: a (bytes,) tensor each → (3, H, W), uint8 each."""
    try:
        from torchcodec.decoders import decode_jpeg
    except ImportError:  # before 0.16 it has no decoder of images; those of torchvision are deprecated since 0.29
        from torchvision.io import decode_jpeg
    return decode_jpeg(jpegs, mode="RGB", device=device)
