"""From an image to the model's input: in a worker to uint8, and a whole batch at a time on the device from there.

What happens in a worker is DeiT's augmentation by timm's own operations, or the 3-Augment of DeiT III.
"""

import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import Compose

from .crops import random_resized_crop
from .encoded_image import EncodedImage, rgb
from .errors import DataError
from .images import Transform
from .normalize import Normaliser, one_thread
from .rand_augment import slide_faster

INTERPOLATIONS = ("bicubic", "bilinear")


class TrainTransform(Transform):
    """Random resized crop, flip, 3-Augment, colour jitter or RandAugment; on the device normalisation, random erasing.

    Args:
        image_size: of the output, in pixels.
        scale, ratio: ranges of the crop's share of the image's area and of its width / height.
        hflip: probability of a horizontal flip.
        color_jitter: strength; as in DeiT and timm, RandAugment takes its place where that is given.
        rand_augment: timm's policy string, "rand-m9-mstd0.5-inc1" say, or None.
        erase_prob: probability that a rectangle is replaced by noise, pixel by pixel.
        three_augment: see `grey_solarise_or_blur`; instead of RandAugment, and colour jitter follows it.
        mean, std, interpolation: those that the model was made for; of each channel, of pixels from 0 to 1.

    Raises:
        DataError: both three_augment and rand_augment are given, or an interpolation that is none of INTERPOLATIONS.
    """

    def __init__(
        self,
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
    ) -> None:
        if three_augment and rand_augment:
            raise DataError(
                f"augment.three_augment=true: goes without augment.rand_augment={rand_augment}; "
                "set either false or null"
            )
        if interpolation not in INTERPOLATIONS:
            raise DataError(f"interpolation={interpolation}: must be one of {', '.join(INTERPOLATIONS)}")
        self.image_size, self.scale, self.ratio, self.hflip = image_size, scale, ratio, hflip
        self.interpolation, self.erase_prob = interpolation, erase_prob
        self.normalise = Normaliser(mean, std)
        _, colour, _ = create_transform(
            image_size,
            is_training=True,
            color_jitter=color_jitter or None,
            auto_augment=rand_augment,
            interpolation=interpolation,
            mean=tuple(mean),
            separate=True,
        )
        slide_faster(colour.transforms)
        self.colours = [*([grey_solarise_or_blur] if three_augment else []), *colour.transforms]

    def __call__(self, image: Image.Image | EncodedImage) -> Tensor:
        """(H, W, 3), uint8. Draws from Python's, numpy's and torch's global generators."""
        pixels = random_resized_crop(image, self.image_size, self.scale, self.ratio, self.interpolation)
        if self.flips():
            pixels = pixels.flip(1)
        if self.colours:
            coloured = Image.fromarray(pixels.numpy())
            for colour in self.colours:
                coloured = colour(coloured)
            pixels = torch.from_numpy(np.array(coloured))
        return pixels

    def flips(self) -> bool:
        return random.random() < self.hflip

    def on_device(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """(B, H, W, 3), uint8 → (B, 3, H, W), fp32; what is erased in an image follows from its seed."""
        normalised = self.normalise(images)
        erase = RandomErasing(probability=1, mode="pixel", device=str(images.device))
        with one_thread():
            for image, seed in zip(normalised, seeds, strict=True):
                random.seed(f"erase {seed}")  # another stream than the one that a worker has drawn from
                if random.random() < self.erase_prob:
                    seed_torch(seed, images.device)
                    erase(image)
        return normalised


class EvalTransform(Transform):
    """Resize the short side to image_size / crop_ratio, cut out the centre; normalise on the device.

    mean, std, interpolation: as for training. The pixels are Pillow's: what is published was measured with them.
    """

    def __init__(
        self,
        image_size: int,
        crop_ratio: float = 1.0,
        *,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        interpolation: str = "bicubic",
    ) -> None:
        self.normalise = Normaliser(mean, std)
        whole = create_transform(image_size, interpolation=interpolation, crop_pct=crop_ratio, crop_mode="center")
        self.resize_and_crop = Compose(whole.transforms[:2])

    def __call__(self, image: Image.Image | EncodedImage) -> Tensor:
        """(H, W, 3), uint8."""
        return torch.from_numpy(np.array(self.resize_and_crop(rgb(image))))

    def on_device(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """(B, H, W, 3), uint8 → (B, 3, H, W), fp32."""
        return self.normalise(images)


def grey_solarise_or_blur(image: Image.Image) -> Image.Image:
    """3-Augment (Touvron et al., DeiT III, arXiv 2204.07118, section 3.2): one of the three, each as likely."""
    match random.choice(("grey", "solarise", "blur")):
        case "grey":
            return ImageOps.grayscale(image).convert("RGB")
        case "solarise":
            return ImageOps.solarize(image, threshold=128)
        case _:
            return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def seed_torch(seed: int, device: torch.device) -> None:
    """Of the CPU alone where that is enough: to seed every device takes 0.2 ms."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
