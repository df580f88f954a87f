"""An image with its mask: a joint random crop to learn from, the whole image to be evaluated on.

The augmentation is that of the authors, who used mmsegmentation's for ADE20k.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import AfterValidator, Field
from torch import Tensor

from xcit.device import moved
from xcit.encoded_image import rgb
from xcit.errors import InputError
from xcit.number_types import NonNegative, Probability
from xcit.preprocessing import Preprocessing

from ..examples import Example, View
from ..index_mask import IGNORED
from ..normalize import Normalize
from ..shared_memory import SharedBuffers
from .labelled_crop import Pair, check_ratio, require_rgb_of_8_bits

Pixels = tuple[Tensor, Tensor]
"""An image, (H, W, 3), uint8; and its mask, int16."""


class MaskBatch(NamedTuple):
    """A batch of the training view on the device."""

    images: Tensor
    """(B, 3, S, S), fp32, normalized with the model's mean and std, in channels_last memory format."""
    masks: Tensor
    """(B, S, S), int64: the index of each pixel's class, or -1, which is ignored."""


class WholeMasks(NamedTuple):
    """A batch of the evaluation view. The images have different sizes."""

    images: list[Tensor]
    """(1, 3, h, w) each, fp32, normalized, on the device."""
    pictures: list[Tensor]
    """(h, w, 3) each, uint8, on the CPU: the same images, for display."""
    masks: list[Tensor]
    """(H, W) each, int64, on the device, in the size of the image's file: the index of each pixel's class, or -1."""


class PhotometricDistortion:
    """Changes of brightness, contrast, saturation and hue, each with a probability, from Python's generator.

    They are those of SSD (Liu et al., arXiv 1512.02325, section 3.6), as mmsegmentation has them. torchvision's
    RandomPhotometricDistort also swaps color channels, and changes the contrast around the mean.
    """

    def __init__(
        self,
        *,
        probability: float,
        brightness: float,
        contrast: Sequence[float],
        saturation: Sequence[float],
        hue: float,
    ) -> None:
        """brightness: Largest change, as a share of white. hue: Largest change, as a share of the color circle."""
        self.probability, self.brightness, self.hue = probability, brightness, hue
        self.contrast, self.saturation = contrast, saturation

    def __call__(self, image: Image.Image) -> Image.Image:
        levels = np.arange(256.0)
        contrast = random.uniform(*self.contrast) if self.drawn() else 1.0
        contrast_first = random.random() < 0.5
        # In RGB: the brightness is added, the contrast multiplied.
        lighter = levels + (255 * random.uniform(-self.brightness, self.brightness) if self.drawn() else 0.0)
        image = mapped(image, [lighter.clip(0, 255) * (contrast if contrast_first else 1.0)] * 3)
        # In HSV: the hue moves on its circle, the saturation is multiplied.
        hue = (levels + (round(256 * random.uniform(-self.hue, self.hue)) if self.drawn() else 0)) % 256
        saturated = levels * (random.uniform(*self.saturation) if self.drawn() else 1.0)
        if (hue != levels).any() or (saturated != levels).any():
            image = mapped(image.convert("HSV"), [hue, saturated, levels]).convert("RGB")
        return image if contrast_first else mapped(image, [levels * contrast] * 3)

    def drawn(self) -> bool:
        """Draw whether to make a change."""
        return random.random() < self.probability


def mapped(image: Image.Image, tables: Sequence[np.ndarray]) -> Image.Image:
    """Replace each value by that of its channel's table, rounded and clipped to 0 to 255."""
    return image.point(np.concatenate(tables).round().astype(int).tolist())


class RandomMaskedCrop(View):
    """The training view: an image is resized by a random ratio and cropped at random, together with its mask.

    Only the crop is computed. Pillow's `box=` also reads pixels outside of the box, so the result equals resize, then
    crop. The mask takes the value of the pixel in which the center of a resized pixel lies ("nearest-exact" in torch).

    Args:
        preprocessing: `size` is (S, L): images are resized as for evaluation, to `size` times a random ratio. The crop
            has S × S pixels.
        ratio: Smallest and largest ratio.
        cat_max_ratio: The crop is drawn again if a class has at least this share of its labelled pixels.
        crop_attempts: How often it is drawn at most. The last one is taken in any case.
        hflip: Probability of a horizontal flip.
        distort: The change of the colors.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        ratio: Sequence[float],
        cat_max_ratio: float,
        crop_attempts: int,
        hflip: float,
        distort: PhotometricDistortion,
    ) -> None:
        self.preprocessing, self.size, self.ratio = preprocessing, preprocessing.size[0], ratio
        self.cat_max_ratio, self.crop_attempts, self.hflip, self.distort = cat_max_ratio, crop_attempts, hflip, distort
        self.resample = Image.Resampling[preprocessing.interpolation.upper()]
        self.normalize = Normalize(preprocessing)
        self.buffers = (SharedBuffers(), SharedBuffers())
        self.mean_color = [round(255 * mean) for mean in preprocessing.mean]

    def sample(self, example: Example) -> Pixels:
        image = rgb(example.image)
        mask = example.target.decode(image.size[::-1])
        # Choose the size of the whole image, and the crop of it.
        ratio = random.uniform(*self.ratio)
        short, long = (max(1, int(side * ratio)) for side in self.preprocessing.size)
        resized = replace(self.preprocessing, size=(short, long)).resized_size(*mask.shape)
        rows, columns, labels = self.choose_crop(mask, resized)
        # Compute the same crop of the image.
        scale_y, scale_x = image.height / resized[0], image.width / resized[1]
        right, bottom = min(columns.stop * scale_x, image.width), min(rows.stop * scale_y, image.height)
        box = (columns.start * scale_x, rows.start * scale_y, right, bottom)
        image = image.resize((len(columns), len(rows)), self.resample, box=box)
        # Flip both, and change the colors.
        if random.random() < self.hflip:
            image, labels = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), labels[:, ::-1]
        return self.padded(np.asarray(self.distort(image)), labels)

    def choose_crop(self, mask: np.ndarray, resized: tuple[int, int]) -> tuple[range, range, np.ndarray]:
        """Draw the rows and columns of the resized image until the crop shows enough of other classes.

        Returns:
            The rows, the columns, and the labels of the crop.
        """
        for _ in range(self.crop_attempts):
            rows, columns = (random_range(length, self.size) for length in resized)
            of_rows = mask[source_pixels(rows, mask.shape[0], resized[0])]
            labels = of_rows[:, source_pixels(columns, mask.shape[1], resized[1])]
            if self.is_varied(labels):
                break
        return rows, columns, labels

    def is_varied(self, labels: np.ndarray) -> bool:
        """Whether there are several classes, none with `cat_max_ratio` of the labelled pixels or more."""
        counts = np.bincount(labels.reshape(-1) - IGNORED)[1:]
        return bool(np.count_nonzero(counts) > 1 and counts.max() < self.cat_max_ratio * counts.sum())

    def padded(self, pixels: np.ndarray, labels: np.ndarray) -> Pixels:
        """Pad both at the right and at the bottom: with the mean color, which becomes about 0, and with -1."""
        height, width = labels.shape
        image = np.empty((self.size, self.size, 3), dtype=np.uint8)
        image[...] = self.mean_color
        image[:height, :width] = pixels
        mask = np.full((self.size, self.size), IGNORED, dtype=np.int16)
        mask[:height, :width] = labels
        return torch.from_numpy(image), torch.from_numpy(mask)

    def collate(self, samples: Sequence[Pixels]) -> tuple[Tensor, Tensor]:
        images, masks = zip(*samples, strict=True)
        return self.buffers[0].stack(images), self.buffers[1].stack(masks)

    def to_device(
        self, collated: tuple[Tensor, Tensor], device: torch.device, seeds: Sequence[int], batch_seed: Sequence[int]
    ) -> MaskBatch:
        pixels, masks = (moved(tensor, device) for tensor in collated)
        return MaskBatch(self.normalize(pixels), masks.long())


def random_range(length: int, size: int) -> range:
    """Draw `size` neighboring numbers of 0 to length - 1; all numbers if there are fewer."""
    start = random.randint(0, max(0, length - size))
    return range(start, min(length, start + size))


def source_pixels(resized: range, length: int, resized_length: int) -> np.ndarray:
    """Return the pixel in which the center of each resized pixel lies."""
    centers = np.arange(resized.start, resized.stop) + 0.5
    return np.minimum((centers * (length / resized_length)).astype(np.int64), length - 1)


class WholeMaskedImages(View):
    """The evaluation view: the whole image, resized as `preprocessing` says, and its mask as it is."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def sample(self, example: Example) -> Pixels:
        image = rgb(example.image)
        mask = example.target.decode(image.size[::-1])
        return self.preprocessing.pixels(image), torch.from_numpy(mask)

    def collate(self, samples: Sequence[Pixels]) -> list[Pixels]:
        return list(samples)

    def to_device(
        self, collated: list[Pixels], device: torch.device, seeds: Sequence[int], batch_seed: Sequence[int]
    ) -> WholeMasks:
        return WholeMasks(
            [self.preprocessing.normalize(pixels.to(device)[None]) for pixels, _ in collated],
            [pixels for pixels, _ in collated],
            [mask.to(device).long() for _, mask in collated],
        )


def training_view(
    preprocessing: Preprocessing,
    classes: Sequence[str],
    decode: Literal["cpu", "gpu"],
    *,
    ratio: Annotated[Pair, AfterValidator(check_ratio)],
    cat_max_ratio: Annotated[float, Field(gt=0, le=1)],
    crop_attempts: Annotated[int, Field(ge=1)],
    hflip: Probability,
    photometric: Probability,
    brightness: Probability,
    contrast: Annotated[Pair, AfterValidator(check_ratio)],
    saturation: Annotated[Pair, AfterValidator(check_ratio)],
    hue: Annotated[NonNegative, Field(le=0.5)],
) -> RandomMaskedCrop:
    """Build the training view. conf/augment sets the options, from `ratio` on.

    Args:
        preprocessing: Size, normalization and interpolation of the model's input.
        classes: Not used: a mask holds their indices.
        decode: Where JPEGs are decoded; must be "cpu".
        ratio: Size of the resized image relative to that in evaluation, smallest and largest.
        cat_max_ratio: Largest share of a crop's labelled pixels that one class has; a crop with more is drawn again.
        crop_attempts: How often a crop is drawn at most; 1: the first one is taken.
        hflip: Probability of a horizontal flip.
        photometric: Probability of each change of the colors: brightness, contrast, saturation and hue.
        brightness: Largest change of the brightness, as a share of white.
        contrast: Factor of the contrast, smallest and largest.
        saturation: Factor of the saturation, smallest and largest.
        hue: Largest change of the hue, as a share of the color circle.

    Raises:
        InputError: decode is "gpu", or the images are not RGB images of 8 bits.
    """
    if decode == "gpu":
        raise InputError("data.decode=gpu: not for this task, whose images have masks; use cpu")
    require_rgb_of_8_bits(preprocessing)
    distort = PhotometricDistortion(
        probability=photometric, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue
    )
    return RandomMaskedCrop(
        preprocessing,
        ratio=ratio,
        cat_max_ratio=cat_max_ratio,
        crop_attempts=crop_attempts,
        hflip=hflip,
        distort=distort,
    )


def evaluation_view(preprocessing: Preprocessing, classes: Sequence[str]) -> WholeMaskedImages:
    """Build the evaluation view at the resolution of `preprocessing`."""
    require_rgb_of_8_bits(preprocessing)
    return WholeMaskedImages(preprocessing)
