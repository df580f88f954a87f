"""A view of one image as several crops: two large ones and many small ones, each augmented (SwAV and DINO).

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", arXiv 2104.14294, section 3.1 and appendix.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from pydantic import AfterValidator, Field
from torch import Tensor
from torchvision.transforms import v2

from xcit.device import moved
from xcit.errors import InputError
from xcit.number_types import Probability
from xcit.preprocessing import Preprocessing

from ..crops import Crop, random_resized_crops
from ..examples import Example, View
from ..normalize import Normalize
from ..shared_memory import SharedBuffers
from .labelled_crop import CenterLabelledCrop, Pair, check_ratio, check_scale, require_rgb
from .labelled_crop import evaluation_view as labelled_evaluation_view

GLOBAL_CROPS = 2
LARGEST_RADIUS = 2.0
"""The standard deviation of the blur is drawn from 0.1 to this number, in pixels."""
SOLARIZE_FROM = 128
"""Solarisation inverts pixel values from this one on."""


class Crops(NamedTuple):
    """A batch of this view on the device. Row c · B + i is crop c of image i."""

    global_crops: Tensor
    """(2 · B, 3, H, W), fp32, normalized with the model's mean and std, in channels_last memory format."""
    local_crops: Tensor | None
    """(L · B, 3, h, w), as the global crops; None without local crops."""


class Colors:
    """DINO's augmentation of one crop: flip, color jitter, grayscale, blur, solarisation, each with a probability.

    All random numbers come from the global generators of Python and torch.
    """

    def __init__(self, *, hflip: float, color_jitter: float, grayscale: float, blur: float, solarize: float) -> None:
        self.hflip, self.blur, self.solarize = hflip, blur, solarize
        jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
        self.color = v2.Compose([v2.RandomApply([jitter], p=color_jitter), v2.RandomGrayscale(grayscale)])

    def __call__(self, pixels: Tensor) -> Tensor:
        """(H, W, 3), uint8, in and out."""
        if random.random() < self.hflip:
            pixels = pixels.flip(1)
        image: Image.Image = self.color(Image.fromarray(pixels.numpy()))
        if random.random() < self.blur:
            image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, LARGEST_RADIUS)))
        if random.random() < self.solarize:
            image = ImageOps.solarize(image, SOLARIZE_FROM)
        return torch.from_numpy(np.array(image))


class MultiCrop(View):
    """The training view: workers decode each image once, crop it and augment the crops; the device normalizes them.

    Args:
        crops: What is cut from each image, the two global crops first.
        colors: The augmentation of each crop.
    """

    def __init__(
        self, crops: Sequence[Crop], colors: Sequence[Colors], ratio: Sequence[float], preprocessing: Preprocessing
    ) -> None:
        self.crops, self.colors, self.ratio, self.preprocessing = crops, colors, ratio, preprocessing
        # One for each size, since both reuse memory of one shape.
        self.buffers = (SharedBuffers(), SharedBuffers())
        self.normalize = tuple(Normalize(preprocessing) for _ in range(2))

    def sample(self, example: Example) -> list[Tensor]:
        cut = random_resized_crops(example.image, self.crops, self.ratio, self.preprocessing)
        return [augment(pixels) for augment, pixels in zip(self.colors, cut, strict=True)]

    def collate(self, samples: Sequence[list[Tensor]]) -> list[Tensor]:
        by_crop = list(zip(*samples, strict=True))
        sizes = (by_crop[:GLOBAL_CROPS], by_crop[GLOBAL_CROPS:])
        return [
            buffers.stack([pixels for crop in crops for pixels in crop])
            for buffers, crops in zip(self.buffers, sizes, strict=True)
            if crops
        ]

    def to_device(
        self, collated: list[Tensor], device: torch.device, seeds: Sequence[int], batch_seed: Sequence[int]
    ) -> Crops:
        images = [normalize(moved(pixels, device)) for normalize, pixels in zip(self.normalize, collated, strict=False)]
        return Crops(images[0], images[1] if len(images) > 1 else None)


class Images(NamedTuple):
    """A batch of images without labels."""

    images: Tensor
    """(B, 3, H, W), fp32, normalized with the model's mean and std, in channels_last memory format."""
    labels: None = None


class CenterCrop(CenterLabelledCrop):
    """The evaluation view of images without labels: the center crop, resized and normalized."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__(preprocessing, num_classes=0)

    def to_device(self, collated: Any, device: torch.device, *_: Sequence[int]) -> Any:
        return Images(self.normalize(moved(collated.pixels, device)))


def training_view(
    preprocessing: Preprocessing,
    classes: Sequence[str],
    decode: Literal["cpu", "gpu"],
    *,
    global_scale: Annotated[Pair, AfterValidator(check_scale)],
    local_scale: Annotated[Pair, AfterValidator(check_scale)],
    local_crops: Annotated[int, Field(ge=0)],
    local_size: Annotated[int, Field(ge=1)],
    ratio: Annotated[Pair, AfterValidator(check_ratio)],
    hflip: Probability,
    color_jitter: Probability,
    grayscale: Probability,
    blur: Annotated[list[Probability], Field(min_length=3, max_length=3)],
    solarize: Probability,
) -> MultiCrop:
    """Build the training view. conf/augment sets the options, from `global_scale` on.

    Args:
        preprocessing: Size of the global crops, normalization and interpolation of the model's input.
        classes: Not used: the view needs no labels.
        decode: Where JPEGs are decoded; must be "cpu".
        global_scale: Share of the image's area that a global crop takes, smallest and largest.
        local_scale: Share of the image's area that a local crop takes, smallest and largest.
        local_crops: Number of local crops of each image.
        local_size: Height and width of the local crops in pixels; data.image_size is that of the global crops.
        ratio: Width / height of the random crops, smallest and largest.
        hflip: Probability of a horizontal flip.
        color_jitter: Probability of color jitter (brightness 0.4, contrast 0.4, saturation 0.2, hue 0.1).
        grayscale: Probability that a crop becomes gray.
        blur: Probabilities of a Gaussian blur for the first global crop, the second one, and a local crop.
        solarize: Probability that the second global crop is solarized.

    Raises:
        InputError: decode is "gpu", local crops are larger than global ones, or the images are not square RGB images of
            8 bits.
    """
    require_rgb(preprocessing)
    if local_crops and local_size > preprocessing.size[0]:
        raise InputError(f"augment.local_size={local_size}: must be at most data.image_size={preprocessing.size[0]}")
    if decode == "gpu":
        raise InputError("data.decode=gpu: not for this task, whose crops are cut from one decoded image; use cpu")

    def colors(blur: float, solarize: float) -> Colors:
        return Colors(hflip=hflip, color_jitter=color_jitter, grayscale=grayscale, blur=blur, solarize=solarize)

    globals_ = [Crop(preprocessing.size, global_scale)] * GLOBAL_CROPS
    locals_ = [Crop((local_size, local_size), local_scale)] * local_crops
    of_each = [colors(blur[0], 0.0), colors(blur[1], solarize), *[colors(blur[2], 0.0)] * local_crops]
    return MultiCrop([*globals_, *locals_], of_each, ratio, preprocessing)


def further_sizes(options: Mapping[str, Any]) -> dict[str, list[int]]:
    """The sizes of crops that the model must take besides data.image_size: key → pixels."""
    return {"augment.local_size": [options["local_size"]] if options["local_crops"] else []}


def evaluation_view(preprocessing: Preprocessing, classes: Sequence[str]) -> View:
    """Build the evaluation view: the center crop, with the class of each image if the data set has classes."""
    if classes:
        return labelled_evaluation_view(preprocessing, classes)
    require_rgb(preprocessing)
    return CenterCrop(preprocessing)
