"""From a PIL image to a normalised tensor: timm's pipelines, which are DeiT's."""

from collections.abc import Sequence

from timm.data import create_transform

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
) -> Transform:
    """Random resized crop (bicubic), flip, colour jitter or RandAugment, normalisation, random erasing.

    Args:
        scale, ratio: ranges of the crop's share of the image's area and of its width / height.
        hflip: probability of a horizontal flip.
        color_jitter: strength; as in DeiT and timm, RandAugment takes its place where that is given.
        rand_augment: timm's policy string, "rand-m9-mstd0.5-inc1" say, or None.
        erase_prob: probability that a rectangle is replaced by noise, pixel by pixel.
    """
    return create_transform(
        image_size,
        is_training=True,
        scale=tuple(scale),
        ratio=tuple(ratio),
        hflip=hflip,
        color_jitter=color_jitter,
        auto_augment=rand_augment,
        interpolation="bicubic",
        re_prob=erase_prob,
        re_mode="pixel",
    )


def eval_transform(image_size: int, crop_ratio: float = 1.0) -> Transform:
    """Resize the short side to image_size / crop_ratio (bicubic), cut out the centre, normalise."""
    return create_transform(image_size, interpolation="bicubic", crop_pct=crop_ratio, crop_mode="center")
