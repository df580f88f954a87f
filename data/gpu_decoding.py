"""JPEGs decoded on the GPU, by torchvision's nvjpeg: the workers choose the crops and hand on the files."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from .crops import Box, random_box, resize
from .encoded_image import EncodedImage
from .errors import DataError
from .jpeg import read_jpeg
from .transforms import TrainTransform


def require_gpu_decoding(device: torch.device) -> None:
    """Refuse data.decode=gpu, by a DataError, where it cannot run."""
    if device.type != "cuda":
        raise DataError(f"data.decode=gpu: needs a CUDA GPU, and this run is on the {device.type}; set data.decode=cpu")
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    try:
        decode([torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)], device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"data.decode=gpu: torchvision cannot decode here ({reason}); set data.decode=cpu") from None


class Chosen(NamedTuple):
    """A JPEG, and what is to be seen of it."""

    image: EncodedImage
    box: Box
    flip: bool

    def without_bytes(self) -> "Chosen":
        return self._replace(image=EncodedImage(b"", self.image.origin))


class GpuTrainTransform(TrainTransform):
    """As TrainTransform, with the same boxes and flips, but that JPEGs are decoded and resized on the device.

    What goes the plain way in TrainTransform goes it in the workers here.

    Raises:
        DataError: something is to be done to pixels in the workers: RandAugment, colour jitter or 3-Augment.
    """

    def __init__(self, image_size: int, **options: Any) -> None:
        super().__init__(image_size, **options)
        for name in ("rand_augment", "color_jitter", "three_augment"):
            if options.get(name):
                raise DataError(
                    f"data.decode=gpu: goes without augment.{name}={options[name]}, which workers do to pixels; "
                    "set data.decode=cpu, or augment=light"
                )

    def __call__(self, image: Image.Image | EncodedImage) -> "Tensor | Chosen":  # type: ignore[override]
        """Pixels, (H, W, 3), uint8, or a JPEG that is still to be decoded."""
        jpeg = read_jpeg(image) if isinstance(image, EncodedImage) else None
        if jpeg is None:
            return super().__call__(image)
        return Chosen(jpeg.image, random_box(jpeg.height, jpeg.width, self.scale, self.ratio), self.flips())

    def stacking(self) -> Callable[[Sequence[Any]], Any]:
        return self.together

    def together(self, made: Sequence[Tensor | Chosen]) -> "Undecoded":
        chosen = [item for item in made if isinstance(item, Chosen)]
        return Undecoded(
            torch.from_numpy(np.frombuffer(bytearray().join(item.image.data for item in chosen), dtype=np.uint8)),
            [len(item.image.data) for item in chosen],
            [item if isinstance(item, Tensor) else item.without_bytes() for item in made],
            self.image_size,
            self.interpolation,
        )


@dataclass(frozen=True, slots=True)
class Undecoded:
    """A batch on its way: on the device it is pixels."""

    data: Tensor
    """The JPEGs' bytes, one after the other: one tensor goes through shared memory."""
    lengths: list[int]
    items: list[Tensor | Chosen]
    """Of each image its pixels, or what is to be seen of the next JPEG."""
    size: int
    interpolation: str

    def to(self, device: torch.device, non_blocking: bool = False) -> Tensor:
        """(B, size, size, 3), uint8."""
        jpegs = self.data.split(self.lengths)
        chosen = [item for item in self.items if isinstance(item, Chosen)]
        try:
            decoded = decode(list(jpegs), device) if jpegs else []
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # of one of them, which is not told: all go the plain way, which names it if it is broken
            plain = [
                EncodedImage(j.numpy().tobytes(), c.image.origin).rgb() for j, c in zip(jpegs, chosen, strict=True)
            ]
            decoded = [torch.from_numpy(np.array(image)).permute(2, 0, 1).to(device) for image in plain]
        crops = iter([self.crop(pixels, item) for pixels, item in zip(decoded, chosen, strict=True)])
        return torch.stack([item.to(device) if isinstance(item, Tensor) else next(crops) for item in self.items])

    def crop(self, image: Tensor, chosen: Chosen) -> Tensor:
        """(3, H, W), uint8 → (size, size, 3), uint8."""
        top, left, height, width = chosen.box
        # In fp32: on a GPU torch resizes no integers.
        pixels = image[:, top : top + height, left : left + width].permute(1, 2, 0).float()
        resized = resize(pixels, self.size, self.interpolation).round().clamp(0, 255).to(torch.uint8)
        return resized.flip(1) if chosen.flip else resized


def decode(jpegs: list[Tensor], device: torch.device) -> list[Tensor]:
    """(bytes,) each → (3, H, W) each, uint8, on the device."""
    return decode_jpeg(jpegs, mode=ImageReadMode.RGB, device=device)
