"""A view of an image with its objects: multi-scale crops for training (DETR's), the whole image for evaluation.

Carion et al., "End-to-End Object Detection with Transformers", arXiv 2005.12872, section 4; the authors of XCiT use it.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import AfterValidator, Field
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from xcit.device import moved
from xcit.encoded_image import BrokenImageError, EncodedImage, rgb
from xcit.errors import InputError
from xcit.number_types import Probability
from xcit.preprocessing import Preprocessing

from ..examples import Example, View
from ..normalize import Normalize
from ..objects import Objects, decode_masks
from .labelled_crop import require_rgb_of_8_bits

OPTIONS_FOR = 800  # SHORTER_SIDE in xcit/tasks/detect.py must be the same
"""The data.image_size that the sides in conf/augment are for. For another one they change in proportion."""
MULTIPLE = 32
"""Batches are padded to multiples of this number, the largest stride of the feature pyramid."""
SMALLEST_SIDE = 1.0
"""An object whose box is smaller than this after the crop, in pixels of the image file, is left out."""

Sides = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]


def check_rising(values: list[int]) -> list[int]:
    if values[0] > values[1]:
        raise ValueError("must rise")
    return values


class ObjectBatch(NamedTuple):
    """A training batch on the device."""

    images: Tensor
    """(B, 3, H, W), fp32, normalized, zero right of and below each image. H and W are multiples of 32."""
    sizes: list[tuple[int, int]]
    """(height, width) of each image before padding."""
    targets: list[dict[str, Tensor]]
    """For each image: boxes (N, 4), fp32, left, top, right, bottom; labels (N,), int64; masks (N, h, w), uint8."""
    seeds: list[int]
    """The seed of each image."""


class WholeImages(NamedTuple):
    """An evaluation batch. Images differ in size and are not padded, so no result depends on the batch."""

    images: list[Tensor]
    """(1, 3, h, w) each, fp32, normalized, on the device."""
    pictures: list[Tensor]
    """(h, w, 3) each, uint8, on the CPU: the same before normalization."""
    originals: list[tuple[int, int]]
    """(height, width) of each image file."""
    truths: list[dict[str, Any]]
    """The fields of `Objects` as numpy arrays, for each image, in pixels of the image file."""


class Policy(NamedTuple):
    """What is drawn for an image in training. Sides are in pixels of the model's input."""

    hflip: float
    shorter_sides: Sequence[int]
    longest_side: int
    crop_prob: float
    crop_shorter_sides: Sequence[int]
    crop_size: Sequence[int]


class Sample(NamedTuple):
    """A training image and its objects."""

    pixels: Tensor
    """(h, w, 3), uint8."""
    boxes: Tensor
    labels: Tensor
    masks: Tensor


class MultiScaleObjects(View):
    """The training view: crops (with a probability), resizes and flips an image, its boxes and its masks."""

    def __init__(self, policy: Policy, preprocessing: Preprocessing) -> None:
        self.policy, self.interpolation = policy, InterpolationMode(preprocessing.interpolation)
        sides = (*policy.shorter_sides, *policy.crop_shorter_sides)
        self.with_side = {side: replace(preprocessing, size=(side, policy.longest_side)) for side in sides}
        self.normalize = Normalize(preprocessing)

    def sample(self, example: Example) -> Sample:
        objects: Objects = example.target
        image = tv_tensors.Image(torch.from_numpy(np.array(upright_as_annotated(example))).permute(2, 0, 1))
        height, width = image.shape[-2:]
        learnt = np.flatnonzero(~objects.crowd)
        boxes = as_boxes(torch.from_numpy(objects.boxes[learnt]), height, width)

        # Crop the image and the boxes. Objects outside the crop are left out before their masks are decoded.
        crop = self.draw_crop(height, width)
        image, boxes = F.crop(image, *crop), F.crop(boxes, *crop)
        stays = ((boxes[:, 2:] - boxes[:, :2]).as_subclass(Tensor) >= SMALLEST_SIDE).all(1)
        learnt = learnt[stays.numpy()]
        boxes = as_boxes(boxes.as_subclass(Tensor)[stays], *crop[2:])
        masks = tv_tensors.Mask(torch.from_numpy(decode_masks([objects.masks[i] for i in learnt], height, width)))
        masks = F.crop(masks, *crop)

        # Resize, then flip.
        side = random.choice(self.policy.shorter_sides)
        size = list(self.with_side[side].resized_size(*crop[2:]))
        image = F.resize(image, size, interpolation=self.interpolation, antialias=True)
        boxes = F.resize(boxes, size)
        masks = F.resize(masks, size, interpolation=InterpolationMode.NEAREST_EXACT)
        if random.random() < self.policy.hflip:
            image, boxes, masks = F.horizontal_flip(image), F.horizontal_flip(boxes), F.horizontal_flip(masks)
        return Sample(
            image.as_subclass(Tensor).permute(1, 2, 0),
            F.clamp_bounding_boxes(boxes).as_subclass(Tensor),  # they may lie 1e-5 pixels outside by rounding
            torch.from_numpy(objects.labels[learnt]),
            masks.as_subclass(Tensor),
        )

    def draw_crop(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Draw a crop in pixels of the image: top, left, height, width. It may be the whole image.

        DETR resizes the image, crops it and resizes it again. Here the crop is the same part of the image, but it is
        cut out of the original, which is then resized once.
        """
        if random.random() >= self.policy.crop_prob:
            return 0, 0, height, width
        side = random.choice(self.policy.crop_shorter_sides)
        h, w = self.with_side[side].resized_size(height, width)
        low, high = self.policy.crop_size
        crop_h, crop_w = random.randint(min(h, low), min(h, high)), random.randint(min(w, low), min(w, high))
        crop_h, crop_w = max(1, round(crop_h * height / h)), max(1, round(crop_w * width / w))
        return random.randint(0, height - crop_h), random.randint(0, width - crop_w), crop_h, crop_w

    def collate(self, samples: Sequence[Sample]) -> tuple[Any, ...]:
        # Few large tensors, because a worker sends each one as a file of its own.
        sizes = [(sample.pixels.shape[0], sample.pixels.shape[1]) for sample in samples]
        height, width = (MULTIPLE * -(-max(sides) // MULTIPLE) for sides in zip(*sizes, strict=True))
        pixels = torch.zeros(len(samples), height, width, 3, dtype=torch.uint8)
        for padded, sample, (h, w) in zip(pixels, samples, sizes, strict=True):
            padded[:h, :w] = sample.pixels
        boxes, labels = (
            torch.cat([sample.boxes for sample in samples]),
            torch.cat([sample.labels for sample in samples]),
        )
        masks = flattened([sample.masks for sample in samples])
        return pixels, sizes, boxes, labels, masks, [len(sample.labels) for sample in samples]

    def to_device(
        self, collated: tuple[Any, ...], device: torch.device, seeds: Sequence[int], batch_seed: Sequence[int]
    ) -> ObjectBatch:
        pixels, sizes, *_, counts = collated
        pixels, boxes, labels, masks = (moved(tensor, device) for tensor in (pixels, *collated[2:5]))
        images = self.normalize(pixels)
        for image, (h, w) in zip(images, sizes, strict=True):
            image[:, h:], image[:, :, w:] = 0, 0
        of_images = (
            boxes.split(counts),
            labels.split(counts),
            unflattened(masks, [(number, h, w) for number, (h, w) in zip(counts, sizes, strict=True)]),
        )
        targets = [dict(zip(("boxes", "labels", "masks"), one, strict=True)) for one in zip(*of_images, strict=True)]
        return ObjectBatch(images, sizes, targets, list(seeds))


class WholeImageObjects(View):
    """The evaluation view: the whole image at the resolution of `preprocessing`, and its objects unchanged."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def sample(self, example: Example) -> tuple[Tensor, tuple[int, int], Objects]:
        image = upright_as_annotated(example)
        return self.preprocessing.pixels(image), (image.height, image.width), example.target

    def collate(self, samples: Sequence[tuple[Tensor, tuple[int, int], Objects]]) -> tuple[Any, ...]:
        pixels, originals, objects = zip(*samples, strict=True)
        return flattened(pixels), [tuple(image.shape) for image in pixels], list(originals), list(objects)

    def to_device(self, collated: tuple[Any, ...], device: torch.device, *_: Sequence[int]) -> WholeImages:
        flat, shapes, originals, objects = collated
        pictures = unflattened(flat, shapes)
        images = [self.preprocessing.normalize(moved(picture[None], device)) for picture in pictures]
        return WholeImages(images, pictures, originals, [vars(found) for found in objects])


def upright_as_annotated(example: Example) -> Image.Image:
    """Decode the image as its annotations see it.

    Some annotators saw images turned as EXIF says, and others as the file stores them. The size tells which.

    Raises:
        BrokenImageError: The image has another size than the annotations say.
    """
    image, annotated = rgb(example.image), example.target.size
    size = (image.height, image.width)
    if annotated in (None, size):
        return image
    if isinstance(example.image, EncodedImage) and annotated == size[::-1]:
        with example.image.opened() as opened:
            # A copy without EXIF data, which the preprocessing would follow.
            stored = Image.fromarray(np.array(example.image.to_8_bits(opened).convert("RGB")))
        if (stored.height, stored.width) == annotated:
            return stored
    raise BrokenImageError(
        f"{example.key}: has {size[1]} × {size[0]} pixels, but its annotations are for {annotated[1]} × {annotated[0]}"
    )


def as_boxes(boxes: Tensor, height: int, width: int) -> tv_tensors.BoundingBoxes:
    """Tell torchvision's transforms that these are boxes, (N, 4): left, top, right, bottom."""
    return tv_tensors.BoundingBoxes(boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=(height, width))


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of different shapes, one after the other."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def unflattened(flat: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The inverse of `flattened`, without a copy."""
    ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)]).tolist()
    return [flat[start:end].view(*shape) for (start, end), shape in zip(pairwise(ends), shapes, strict=True)]


def training_view(
    preprocessing: Preprocessing,
    classes: Sequence[str],
    decode: Literal["cpu", "gpu"],
    *,
    hflip: Probability,
    shorter_sides: Sides,
    crop_prob: Probability,
    crop_shorter_sides: Sides,
    crop_size: Annotated[
        list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2), AfterValidator(check_rising)
    ],
) -> MultiScaleObjects:
    """Build the training view. conf/augment sets the options, from `hflip` on.

    Args:
        preprocessing: Size, normalization and interpolation of the model's input.
        classes: Not used: labels are numbers.
        decode: Where JPEGs are decoded; must be "cpu".
        hflip: Probability of a horizontal flip.
        shorter_sides: Lengths that the shorter side is resized to, one at random, for data.image_size=800. For another
            one all of these sides change in proportion.
        crop_prob: Probability that a part of the image is cut out before it is resized.
        crop_shorter_sides: Lengths of the image's shorter side to which crop_size refers, one at random.
        crop_size: Height and width of that part, smallest and largest, each drawn on its own.

    Raises:
        InputError: decode is "gpu", the model does not take RGB of 8 bits, or a shorter side exceeds the longest.
    """
    require_whole_rgb(preprocessing)
    if decode == "gpu":
        raise InputError("data.decode=gpu: not for this task, whose masks are cropped with the image; use cpu")

    def scaled(sides: Sequence[int]) -> list[int]:
        return [max(1, round(side * preprocessing.size[0] / OPTIONS_FOR)) for side in sides]

    for option, sides in (("shorter_sides", shorter_sides), ("crop_shorter_sides", crop_shorter_sides)):
        if scaled([max(sides)])[0] > preprocessing.size[1]:
            limit = round(preprocessing.size[1] * OPTIONS_FOR / preprocessing.size[0])
            raise InputError(
                f"augment.{option}: holds {max(sides)}; must be {limit} at most, the longest side of an image for "
                f"data.image_size={OPTIONS_FOR} (task.longest)"
            )
    policy = Policy(
        hflip, scaled(shorter_sides), preprocessing.size[1], crop_prob, scaled(crop_shorter_sides), scaled(crop_size)
    )
    return MultiScaleObjects(policy, preprocessing)


def evaluation_view(preprocessing: Preprocessing, classes: Sequence[str]) -> WholeImageObjects:
    """Build the evaluation view at the resolution of `preprocessing`."""
    require_whole_rgb(preprocessing)
    return WholeImageObjects(preprocessing)


def require_whole_rgb(preprocessing: Preprocessing) -> None:
    """Refuse a preprocessing that this view does not follow."""
    require_rgb_of_8_bits(preprocessing)
    if preprocessing.resize != "shortest":
        raise InputError(f"resize={preprocessing.resize}: must be shortest, since objects are found in whole images")
