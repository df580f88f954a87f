"""A view of one image and its labels: an augmented random crop for training, the center crop for evaluation."""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import AfterValidator, Field
from torch import Tensor

from xcit.device import moved
from xcit.encoded_image import EncodedImage
from xcit.errors import InputError, Notice
from xcit.number_types import NonNegative, PositiveFloat, Probability
from xcit.preprocessing import Preprocessing

from ..examples import Example, View
from ..gpu_decoding import GpuTrainTransform
from ..mixing import Mixing
from ..normalize import Normalize
from ..shared_memory import SharedBuffers
from ..transforms import TrainTransform

RAND_AUGMENT_POLICY = r"rand(-(m\d+|n\d+|p[\d.]+|mstd[\d.]+|mmax\d+|inc[01]|tweights|t3a))*"


def check_ratio(values: list[float]) -> list[float]:
    if values[0] > values[1]:
        raise ValueError("must rise")
    return values


def check_scale(values: list[float]) -> list[float]:
    if values[0] > values[1] or values[1] > 1:
        raise ValueError("must rise, and end at 1 at most")
    return values


def check_policy(policy: str) -> str:
    if not re.fullmatch(RAND_AUGMENT_POLICY, policy):
        raise ValueError("must be a policy of timm's, as rand-m9-mstd0.5-inc1")
    return policy


Pair = Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)]


class LabelledImages(NamedTuple):
    """A batch of this view on the device."""

    images: Tensor
    """(B, C, H, W), fp32, normalized with the model's mean and std, in channels_last memory format."""
    targets: Tensor
    """(B, K), fp32. For one class an image: the probability of each class, smoothed and mixed in training, one-hot in
    evaluation. For several labels or values: these, mixed in training, and NaN where one is unknown."""
    labels: Tensor
    """The targets before mixing: (B,), int64, the class of each image; or (B, K), fp32, several labels or values."""
    weights: Tensor
    """(B,), fp32. The weight of each image in the training loss, mixed as the targets are."""


class Sample(NamedTuple):
    """What a worker makes of an example."""

    pixels: Any
    target: int | np.ndarray
    weight: float


class Collated(NamedTuple):
    """The samples of a batch. Targets and weights are plain, because a small tensor costs a shared file of its own."""

    pixels: Any
    targets: list[int | np.ndarray]
    weights: list[float]

    def labels_and_weights(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """As `LabelledImages` has them."""
        labels, weights = torch.as_tensor(np.asarray(self.targets)), torch.tensor(self.weights, dtype=torch.float32)
        labels = labels.float() if labels.ndim == 2 else labels
        return moved(labels, device), moved(weights, device)


class RandomLabelledCrop(View):
    """The training view: workers crop and augment each image; the device applies mixup, CutMix and label smoothing."""

    def __init__(self, transform: TrainTransform, mixing: Mixing) -> None:
        self.transform, self.mixing = transform, mixing

    def sample(self, example: Example) -> Sample:
        return Sample(self.transform(example.image), example.target, example.weight)

    def collate(self, samples: Sequence[Sample]) -> Collated:
        return collated(samples, self.transform.stack)

    def to_device(
        self, collated: Collated, device: torch.device, seeds: Sequence[int], batch_seed: Sequence[int]
    ) -> LabelledImages:
        pixels = moved(collated.pixels, device)
        images = self.transform.on_device(pixels, seeds)
        labels, weights = collated.labels_and_weights(device)
        images, targets, weights = self.mixing(images, labels, weights, list(batch_seed), seeds)
        return LabelledImages(images, targets, labels, weights)

    def check_batch_size(self, batch_size: int) -> None:
        self.mixing.check_batch_size(batch_size)

    def check_kind(self, target_kind: str) -> None:
        self.mixing.check_kind(target_kind)


class CenterLabelledCrop(View):
    """The evaluation view: the center crop of each image, resized and normalized as `preprocessing` says."""

    def __init__(self, preprocessing: Preprocessing, num_classes: int) -> None:
        self.preprocessing, self.num_classes = preprocessing, num_classes
        self.normalize = Normalize(preprocessing)
        self.buffers = SharedBuffers()

    def sample(self, example: Example) -> Sample:
        return Sample(pixels(example.image, self.preprocessing), example.target, example.weight)

    def collate(self, samples: Sequence[Sample]) -> Collated:
        return collated(samples, self.buffers.stack)

    def to_device(
        self, collated: Collated, device: torch.device, seeds: Sequence[int], batch_seed: Sequence[int]
    ) -> LabelledImages:
        images = self.normalize(moved(collated.pixels, device))
        labels, weights = collated.labels_and_weights(device)
        targets = F.one_hot(labels, self.num_classes).float() if labels.ndim == 1 else labels
        return LabelledImages(images, targets, labels, weights)


def collated(samples: Sequence[Sample], stack: Callable[[list[Any]], Any]) -> Collated:
    """The batch of these samples. stack: makes one tensor of their pixels."""
    pixels, targets, weights = zip(*samples, strict=True)
    return Collated(stack(list(pixels)), list(targets), list(weights))


def training_view(
    preprocessing: Preprocessing,
    classes: Sequence[str],
    decode: Literal["cpu", "gpu"],
    *,
    scale: Annotated[Pair, AfterValidator(check_scale)],
    ratio: Annotated[Pair, AfterValidator(check_ratio)],
    hflip: Probability,
    color_jitter: NonNegative,
    rand_augment: Annotated[str, AfterValidator(check_policy)] | None,
    three_augment: bool = False,
    erase_prob: Probability,
    mixup: NonNegative,
    cutmix: NonNegative,
    switch_prob: Probability,
    label_smoothing: Annotated[float, Field(ge=0, lt=1)],
    mix_draws: Annotated[int, Field(ge=1)] = 1,
) -> RandomLabelledCrop:
    """Build the training view. conf/augment sets the options, from `scale` on.

    Args:
        preprocessing: Size, normalization and interpolation of the model's input.
        classes: Names of the classes.
        decode: Where JPEGs are decoded: "cpu" or "gpu".
        scale: Share of the image's area that the random crop takes, smallest and largest.
        ratio: Width / height of the random crop, smallest and largest, relative to the result's; see data.resize.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength of color jitter; ignored if rand_augment is set, as in timm.
        rand_augment: A policy of timm, such as rand-m9-mstd0.5-inc1; null: no RandAugment.
        three_augment: Whether to use DeiT III's 3-Augment, which needs rand_augment=null.
        erase_prob: Probability of random erasing.
        mixup: Alpha of mixup's Beta distribution; 0: no mixup.
        cutmix: Alpha of CutMix's Beta distribution; 0: no CutMix.
        switch_prob: Probability of CutMix instead of mixup, if both are on.
        label_smoothing: Share of the target that is spread evenly over all classes.
        mix_draws: Draws of mixup or CutMix in a global batch; each one is for an equal share of the images, on average.
    """
    if not preprocessing.is_rgb_of_8_bits:
        color_jitter, rand_augment, three_augment = without_colors(color_jitter, rand_augment, three_augment)
    transform = GpuTrainTransform if decode == "gpu" else TrainTransform
    return RandomLabelledCrop(
        transform(
            preprocessing,
            scale=scale,
            ratio=ratio,
            hflip=hflip,
            color_jitter=color_jitter,
            rand_augment=rand_augment,
            three_augment=three_augment,
            erase_prob=erase_prob,
        ),
        Mixing(
            len(classes),
            mixup=mixup,
            cutmix=cutmix,
            switch_prob=switch_prob,
            label_smoothing=label_smoothing,
            mix_draws=mix_draws,
        ),
    )


def without_colors(color_jitter: float, rand_augment: str | None, three_augment: bool) -> tuple[float, None, bool]:
    """Leave out the augmentations that are for RGB images with 8 bits, and say so."""
    given = {"color_jitter": color_jitter, "rand_augment": rand_augment, "three_augment": three_augment}
    if left_out := [f"augment.{key}={value}" for key, value in given.items() if value]:
        warnings.warn(f"{', '.join(left_out)}: left out, since they need RGB images with 8 bits", Notice, 2)
    return 0.0, None, False


def pixels(image: Image.Image | EncodedImage, preprocessing: Preprocessing) -> Tensor:
    """Decode the image and resize it for evaluation."""
    return image.pixels(preprocessing) if isinstance(image, EncodedImage) else preprocessing.pixels(image)


def require_rgb(preprocessing: Preprocessing) -> None:
    """Refuse images other than square RGB images with 8 bits."""
    require_rgb_of_8_bits(preprocessing)
    if preprocessing.size[0] != preprocessing.size[1]:
        raise InputError(f"images of {preprocessing.size[0]} × {preprocessing.size[1]} pixels: must be square")


def require_rgb_of_8_bits(preprocessing: Preprocessing) -> None:
    """Refuse other channels and bit depths; the images may have any shape."""
    if not preprocessing.is_rgb_of_8_bits:
        raise InputError(
            f"images of {preprocessing.channels} channels with {preprocessing.bit_depth} bits: "
            "must be RGB images with 8 bits a channel"
        )


def evaluation_view(preprocessing: Preprocessing, classes: Sequence[str]) -> CenterLabelledCrop:
    """Build the evaluation view at the resolution of `preprocessing`."""
    return CenterLabelledCrop(preprocessing, len(classes))
