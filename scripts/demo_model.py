"""What scripts/demo.py shows of an image: the answer, the attention maps, the time and the memory."""

import copy
import datetime
import threading
from typing import NamedTuple

import torch
from torch import Tensor, nn

from xcit.device import name_of
from xcit.encoded_image import EncodedImage
from xcit.errors import InputError
from xcit.evaluation.attention import class_attention_maps, overlay, patch_size_of
from xcit.evaluation.cost import Cost, growth
from xcit.models.dry_run import takes_size
from xcit.models.xcit import XCiT
from xcit.prediction.answers import Answer
from xcit.prediction.classifier import Classifier, load_trained
from xcit.prediction.pictures import as_rgb
from xcit.preprocessing import Preprocessing

CURVE = (0.5, 0.75, 1, 1.5, 2, 3, 4)
"""The resolutions of the curve as multiples of the run's."""
BUDGET = 10.0
"""Seconds for measuring the curve. It ends earlier if the next resolution would exceed them."""


class Seen(NamedTuple):
    """What is shown of an image."""

    name: str
    """Of the file."""
    answer: Answer
    kind: str
    """Of the answer: "class", "classes" or "values"."""
    picture: Tensor
    """(H, W, 3), uint8: the model's input, as people can see it."""
    maps: list[Tensor]
    """(H, W, 3), uint8: the class attention of each head over the picture; empty if the model has none."""
    patches: tuple[int, int]
    """Rows and columns of a map; (0, 0) without maps."""
    cost: Cost
    """Of the forward pass, measured as those of the curve."""


class Demo:
    """A trained model and the curve of its costs. Several threads may ask it; it serves one at a time.

    Args:
        source, weights: as for `Classifier`.
        largest: the largest resolution; by default 4 times the run's, or less if an image takes too long there.
        max_pixels: images with more pixels are refused.
    """

    def __init__(self, source: str, weights: str | None, largest: int | None, max_pixels: int) -> None:
        self.source, self.max_pixels, self.largest = source, max_pixels, largest
        self.trained = load_trained(source, weights)
        self.device = Classifier(self.trained).device
        self.resolution = min(self.trained.preprocessing.size)
        if largest is not None and largest < self.resolution:
            raise InputError(f"largest={largest}: must be at least {self.resolution}, the resolution of the run")
        self.lock = threading.Lock()
        self.curve: list[Cost] = []
        self.measured = ""

    @property
    def model(self) -> nn.Module:
        return self.trained.model

    @property
    def step(self) -> int:
        """Between two resolutions: a patch, or a seventh of the run's resolution for a model without patches."""
        try:
            return int(patch_size_of(self.model))
        except AttributeError:
            return max(1, self.resolution // 7)

    def grid(self, largest: int) -> range:
        """Resolutions around the run's in steps of a patch, from half of it."""
        smallest = self.resolution - self.resolution // 2 // self.step * self.step
        return range(smallest, largest + 1, self.step)

    def at(self, resolution: int) -> Classifier:
        return Classifier(self.trained, resolution=resolution, max_pixels=self.max_pixels)

    def measure(self) -> None:
        """Measure the curve, which also bounds the resolutions. Takes some seconds."""
        grid = self.grid(self.largest or int(CURVE[-1] * self.resolution))
        sizes = sorted({min(grid, key=lambda side: abs(side - share * self.resolution)) for share in CURVE})
        if not isinstance(self.model, XCiT):  # some of timm's models take one size
            meta = copy.deepcopy(self.model).to("meta")
            sizes = [side for side in sizes if takes_size(meta, side)]

        def run(side: int) -> Tensor:
            classifier = self.at(side)
            preprocessing = classifier.preprocessing
            blank = torch.zeros(*preprocessing.size, preprocessing.channels, dtype=preprocessing.dtype)
            return classifier.logits([blank])

        self.curve = growth(run, sizes, self.device, BUDGET)
        largest = max(self.resolution, self.curve[-1].resolution)
        self.resolutions = self.grid(largest) if len(sizes) > 1 else range(self.resolution, self.resolution + 1)
        where = name_of(self.device) or "this machine's CPU"
        self.measured = f"measured at {datetime.datetime.now():%H:%M}, when the server started, on {where}"

    def see(self, content: bytes, resolution: float, name: str = "this file") -> Seen:
        """What is shown of an image file.

        Raises:
            InputError: the image cannot be read, or is not as the run's images, or the resolution is out of range.
        """
        if resolution not in self.resolutions:
            first, last = self.resolutions[0], self.resolutions[-1]
            raise InputError(f"resolution={resolution}: must be {first} to {last} in steps of {self.step}")
        classifier = self.at(int(resolution))
        with self.lock:
            pixels = EncodedImage(content, name, self.max_pixels).pixels(classifier.preprocessing)
            logits: list[Tensor] = []
            [cost] = growth(lambda _: logits.append(classifier.logits([pixels])), [int(resolution)], self.device)
            [answer] = classifier.head.answers(logits[0], classifier.top)
            picture = as_tensor_of_rgb(pixels, classifier.preprocessing)
            maps = self.maps(classifier, pixels)
        shown = [overlay(picture, one) for one in maps]
        return Seen(name, answer, classifier.head.kind, picture, shown, (maps.shape[-2], maps.shape[-1]), cost)

    @torch.inference_mode()
    def maps(self, classifier: Classifier, pixels: Tensor) -> Tensor:
        """(heads, h, w); without heads if the model has no class attention."""
        images = classifier.preprocessing.normalize(pixels[None].to(self.device))
        try:
            return class_attention_maps(self.model, images)[0].cpu()
        except InputError:
            return torch.empty(0, 0, 0)


def as_tensor_of_rgb(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.array(as_rgb(pixels.numpy(), preprocessing)))
