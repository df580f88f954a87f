"""Classes, labels or numbers of images in three lines: `xcit.Classifier`."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..checkpoint import is_checkpoint, task_weights, upgraded
from ..device import default_device
from ..encoded_image import MAX_PIXELS, EncodedImage
from ..errors import InputError
from ..models.fast.inference import ready_for_inference
from ..models.load import Loaded, class_names, load_content
from ..preprocessing import Preprocessing
from ..storage import read_tensors
from ..weights.dense import is_dense
from ..weights.loading import weights_at
from ..weights.sources import locate
from .answers import KINDS, Answer, Head
from .read_ahead import read_ahead

TASKS = ", ".join(KINDS)


class Trained(NamedTuple):
    """What a `Classifier` needs of a trained model."""

    model: nn.Module
    """In evaluation mode, on the CPU, folded for inference."""
    preprocessing: Preprocessing
    head: Head


def load_trained(source: str | Path, weights: str | None = None) -> Trained:
    """Load a trained model and what reads its outputs. It needs neither torchvision nor the packages of training.

    Raises:
        InputError: the source cannot be found or read, or its answers are not classes, labels or numbers.
    """
    loaded, head = load_with_head(source, weights)
    if head is None:
        raise InputError(f"{source}: is a backbone without a classifier, or was not trained with one of {TASKS}")
    return Trained(ready_for_inference(loaded.model), loaded.preprocessing, head)


def load_with_head(source: str | Path, weights: str | None = None) -> tuple[Loaded, Head | None]:
    """What `xcit.load` returns, and what reads the model's outputs; None for features and for tasks of your own.

    Raises:
        InputError: the source cannot be found or read, or is a detector or segmenter.
    """
    path = locate(str(source))
    content = read_tensors(path)
    name, state = "classify", {}
    if is_checkpoint(content):
        content = upgraded(content, str(path))
        name = content["identity"]["config"]["task"]["name"]
    if name in ("detect", "segment") or is_dense(content):
        what = "is a detector or segmenter" if is_dense(content) else f"was trained with task={name}"
        raise InputError(f"{source}: {what}, not with one of {TASKS}; see xcit.Detector and xcit.Segmenter")
    kind = weights or weights_at(path, content).better()
    loaded = load_content(str(source), path, content, weights)
    if name not in KINDS or not getattr(loaded.model, "num_classes", 0):
        return loaded, None
    if is_checkpoint(content):
        state = task_weights(content)[kind]
    return loaded, Head.of_task(name, class_names(loaded, source), state)


class Classifier:
    """A trained model that is called with images. It says the classes, the labels or the numbers of each.

        classifier = xcit.Classifier("runs/mine")
        for answer in classifier(["dog.jpg", array, pillow_image]):
            print(answer.names[0], answer.probabilities[0])

    The logits are those of eval.py for the same images, batch size and device, bit for bit.

    Args:
        source: a run folder (its last checkpoint), a checkpoint in one, a folder of `save_pretrained`,
            hf-hub:OWNER/NAME, or a name of `list_pretrained()`.
        weights: "raw" or "ema". The default is the better one in the last validation of the run.
        device: such as "cpu", "cuda" or "mps". The default is a GPU if there is one; see `default_device`.
        batch_size: images that are computed together.
        resolution: the image size in pixels, the shorter side of it; the default is that of the run.
        top: the number of classes or labels in an answer.
        max_pixels: image files with more pixels are refused.

    Raises:
        InputError: a value is out of range, or the source cannot be read or has no such answers.
    """

    def __init__(
        self,
        source: str | Path | Trained,
        *,
        weights: str | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 32,
        resolution: int | None = None,
        top: int = 5,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        for key, value in (("batch_size", batch_size), ("resolution", resolution), ("top", top)):
            if value is not None and value < 1:
                raise InputError(f"{key}={value}: must be at least 1")
        if weights is not None and isinstance(source, Trained):
            raise InputError(f"weights={weights}: is for a source that is not loaded yet")
        self.device = device_of(device)
        model, preprocessing, self.head = source if isinstance(source, Trained) else load_trained(source, weights)
        self.model = model.to(self.device)
        self.preprocessing = preprocessing if resolution is None else preprocessing.at(resolution)
        self.batch_size, self.top, self.max_pixels = batch_size, top, max_pixels

    def __call__(self, images: Any) -> list[Answer]:
        """An answer for each image, in their order. See `stream`."""
        return list(self.stream(images))

    def stream(self, images: Any) -> Iterator[Answer]:
        """The answers as they come, in order, so that memory holds no more than two batches.

        Args:
            images: one image or many, also a generator. An image is a path, the bytes of an image file, a Pillow image,
                or an array or tensor (H, W, C) with values of the run's bit depth or range.

        Raises:
            InputError: an image cannot be read, or does not have the channels or bit depth of the run.
        """
        items = read_ahead(enumerate(listed(images)), lambda item: self.pixels(item[1], item[0]), self.batch_size)
        while batch := list(islice(items, self.batch_size)):
            yield from self.answers(batch)

    def pixels(self, image: Any, number: int = 0) -> Tensor:
        """An image, decoded and resized: (H, W, C). number: names it in an error if it has no path."""
        encoded = encoded_image(image, number, self.max_pixels)
        if encoded is not None:
            return encoded.pixels(self.preprocessing)
        try:
            return self.preprocessing.pixels(as_file_would_be(image, self.preprocessing))
        except InputError as error:
            raise InputError(f"images[{number}]: {error}") from None

    @torch.inference_mode()
    def logits(self, pixels: Sequence[Tensor]) -> Tensor:
        """The model's outputs for images of `pixels`, computed together: (B, K), fp32, on the CPU."""
        return self.model(self.preprocessing.normalize(torch.stack(list(pixels)).to(self.device))).float().cpu()

    def answers(self, pixels: Sequence[Tensor]) -> list[Answer]:
        """The answers for images of `pixels`, computed together."""
        return self.head.answers(self.logits(pixels), self.top)


def device_of(device: str | torch.device | None) -> torch.device:
    """The device that is asked for; a GPU if there is one and none is asked for."""
    if device is None:
        return default_device()
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # torch has both for devices that are not there
        raise InputError(f"device={device}: {str(error).splitlines()[0]}") from None
    return found


def listed(images: Any) -> Iterable[Any]:
    """The images one by one, of one or of many."""
    is_one = isinstance(images, (str, Path, bytes, bytearray)) or hasattr(images, "convert")
    if is_one or getattr(images, "ndim", 0) in (2, 3):
        return [images]
    if not isinstance(images, Iterable):
        raise InputError(
            f"images of type {type(images).__name__}: must be paths, bytes, Pillow images, arrays or tensors"
        )
    return images


def encoded_image(image: Any, number: int, max_pixels: int = MAX_PIXELS) -> EncodedImage | None:
    """The image file that a path or bytes stand for; None for other images."""
    if isinstance(image, (bytes, bytearray)):
        return EncodedImage(bytes(image), f"images[{number}]", max_pixels)
    if not isinstance(image, (str, Path)):
        return None
    try:
        return EncodedImage(Path(image).read_bytes(), str(image), max_pixels)
    except OSError as error:
        raise InputError(f"{image}: cannot be read ({error.strerror})") from None


def as_file_would_be(image: Any, preprocessing: Preprocessing) -> Any:
    """An array of 8-bit gray or RGB as a Pillow image, so that it is resized as an image file is; others unchanged."""
    in_8_bits = (preprocessing.bit_depth, preprocessing.value_range) == (8, None) and preprocessing.channels in (1, 3)
    if not in_8_bits or str(getattr(image, "dtype", "")).removeprefix("torch.") != "uint8":
        return image
    array = np.asarray(image.cpu() if isinstance(image, Tensor) else image)
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if array.ndim == 2 or array.shape[2:] == (3,):
        return Image.fromarray(array)
    return image
