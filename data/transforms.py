"""From a PIL image to a normalised tensor: timm's pipelines, which are DeiT's, and the 3-Augment of DeiT III."""

import random
from collections.abc import Sequence

from PIL import Image, ImageFilter, ImageOps
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torchvision.transforms import Compose

from .encoded import rgb
from .errors import DataError
from .images import Transform


def train_transform(
    image_size: int,
    *,
    scale: Sequence[float],
    ratio: Sequence[float],
    hflip: float,
    color_jitter: float,
    rand_augment: str | None,
    erase_prob: float,
    three_augment: bool = False,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    interpolation: str = "bicubic",
) -> Transform:
    """Random resized crop, flip, 3-Augment, colour jitter or RandAugment, normalisation, random erasing.

    Args:
        scale, ratio: ranges of the crop's share of the image's area and of its width / height.
        hflip: probability of a horizontal flip.
        color_jitter: strength; as in DeiT and timm, RandAugment takes its place where that is given.
        rand_augment: timm's policy string, "rand-m9-mstd0.5-inc1" say, or None.
        erase_prob: probability that a rectangle is replaced by noise, pixel by pixel.
        three_augment: see `grey_solarise_or_blur`; instead of RandAugment, and colour jitter follows it.
        mean, std, interpolation: those that the model was made for; of each channel, of pixels from 0 to 1.

    Raises:
        DataError: both three_augment and rand_augment are given.
    """
    if three_augment and rand_augment:
        raise DataError(
            f"augment.three_augment=true: goes without augment.rand_augment={rand_augment}; set either false or null"
        )
    crop, colour, normalise = create_transform(
        image_size,
        is_training=True,
        scale=tuple(scale),
        ratio=tuple(ratio),
        hflip=hflip,
        color_jitter=color_jitter,
        auto_augment=rand_augment,
        interpolation=interpolation,
        mean=tuple(mean),
        std=tuple(std),
        re_prob=erase_prob,
        re_mode="pixel",
        separate=True,
    )
    steps = [crop, grey_solarise_or_blur, colour, normalise] if three_augment else [crop, colour, normalise]
    return Compose([rgb, *steps])


def grey_solarise_or_blur(image: Image.Image) -> Image.Image:
    """3-Augment (Touvron et al., DeiT III, arXiv 2204.07118, section 3.2): one of the three, each as likely."""
    match random.choice(("grey", "solarise", "blur")):
        case "grey":
            return ImageOps.grayscale(image).convert("RGB")
        case "solarise":
            return ImageOps.solarize(image, threshold=128)
        case _:
            return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def eval_transform(
    image_size: int,
    crop_ratio: float = 1.0,
    *,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    interpolation: str = "bicubic",
) -> Transform:
    """Resize the short side to image_size / crop_ratio, cut out the centre, normalise; the latter as for training."""
    transform = create_transform(
        image_size,
        interpolation=interpolation,
        mean=tuple(mean),
        std=tuple(std),
        crop_pct=crop_ratio,
        crop_mode="center",
    )
    return Compose([rgb, transform])
