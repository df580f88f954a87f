"""Objects in images, and the class of each pixel: `xcit.Detector` and `xcit.Segmenter`."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..encoded_image import MAX_PIXELS
from ..errors import InputError
from ..models.dense.mask_rcnn import Detections
from ..orientation import upright
from ..preprocessing import Preprocessing
from ..tasks.load import LoadedTask, load_task
from .classifier import device_of, encoded_image, listed
from .detection_tiles import detect_in_tiles


class WholeImages:
    """A trained task that sees whole images, one at a time, so that no result depends on other images.

    Args:
        source: a run folder, a checkpoint in one, or the name of a published detector or segmenter.
        weights: "raw" or "ema". The default is the better one in the last validation of the run.
        device: such as "cpu", "cuda" or "mps". The default is a GPU if there is one.
        resolution: the shorter side of the model's input in pixels; the default is that of the run.
        tile: side of the tiles of a larger image in pixels, at its full size; 0: the image is resized as a whole.
        overlap: of neighboring tiles in pixels; the default is a quarter of the tile.

    Raises:
        InputError: the source cannot be found or read, or is another task's.
    """

    task_name = ""

    def __init__(
        self,
        source: str | Path | LoadedTask,
        *,
        weights: str | None = None,
        device: str | torch.device | None = None,
        resolution: int | None = None,
        tile: int = 0,
        overlap: int | None = None,
    ) -> None:
        self.device = device_of(device)
        loaded = source if isinstance(source, LoadedTask) else load_task(source, weights)
        if loaded.name != self.task_name:
            raise InputError(f"{source}: was trained with task={loaded.name}, not with task={self.task_name}")
        self.task: Any = loaded.task.to(self.device)
        self.classes = loaded.classes
        self.preprocessing = loaded.preprocessing if resolution is None else loaded.preprocessing.at(resolution)
        self.tile, self.overlap = tile, tile // 4 if overlap is None else overlap
        self.tile_input = resolution or tile
        """Side of the model's input for a tile."""

    def is_tiled(self, picture: Image.Image) -> bool:
        """Whether an image is cut into tiles: it is larger than one."""
        return 0 < self.tile < max(picture.size)

    def at_scale(self, picture: Image.Image) -> Preprocessing:
        """The preprocessing of a part of an image, or of the whole one, that makes `tile_input` of `tile` pixels."""
        height, width = (max(1, round(side * self.tile_input / self.tile)) for side in size_of(picture))
        return replace(self.preprocessing, size=(min(height, width), max(height, width)))

    def pictures(self, images: Any) -> Iterator[Image.Image]:
        """One image or many, as for `Classifier.stream`, upright in RGB."""
        for number, image in enumerate(listed(images)):
            encoded = encoded_image(image, number, MAX_PIXELS)
            if encoded is not None:
                yield encoded.rgb()
            elif hasattr(image, "convert"):
                yield upright(image).convert("RGB")
            else:
                yield Image.fromarray(np.asarray(image)).convert("RGB")


class Detector(WholeImages):
    """A trained detector that is called with images: `xcit.Detector("runs/coco")(["street.jpg"])`. See `WholeImages`.

    The result is a list with `Detections` of each image on the CPU, in pixels of the upright image.
    """

    task_name = "detect"

    @torch.inference_mode()
    def __call__(self, images: Any) -> list[Detections]:
        return [self.find(picture, self.pixels(picture)) for picture in self.pictures(images)]

    def pixels(self, picture: Image.Image) -> Tensor | None:
        """The resized image; None if it is predicted in tiles."""
        return None if self.is_tiled(picture) else self.preprocessing.pixels(picture)

    def find(self, picture: Image.Image, pixels: Tensor | None) -> Detections:
        """The objects in an image. pixels: those of `pixels`."""
        if pixels is None:
            threshold = self.task.heads.roi_heads.nms_thresh
            found = detect_in_tiles(self.of_tile, picture, self.tile, self.overlap, threshold)
        else:
            found = self.of_pixels(pixels, self.preprocessing, size_of(picture))
        return Detections(*(part.cpu() for part in found))

    def of_tile(self, part: Image.Image) -> Detections:
        preprocessing = self.at_scale(part)
        return self.of_pixels(preprocessing.pixels(part), preprocessing, size_of(part))

    def of_pixels(self, pixels: Tensor, preprocessing: Preprocessing, size: tuple[int, int]) -> Detections:
        return self.task.predict(preprocessing.normalize(pixels[None].to(self.device)), size)


class Segmenter(WholeImages):
    """A trained segmenter that is called with images: `xcit.Segmenter("runs/ade")(["room.jpg"])`. See `WholeImages`.

    The result is a list with the class of each pixel of the upright image, an array (H, W), for each image.
    """

    task_name = "segment"

    def __init__(self, source: str | Path | LoadedTask, **options: Any) -> None:
        super().__init__(source, **options)
        self.own_inference = self.task.inference, self.task.window, self.task.stride

    @torch.inference_mode()
    def __call__(self, images: Any) -> list[np.ndarray]:
        return [self.find(picture, self.pixels(picture)) for picture in self.pictures(images)]

    def pixels(self, picture: Image.Image) -> Tensor:
        """The resized image; at its full size if it is predicted in tiles."""
        return self.preprocessing_of(picture).pixels(picture)

    def preprocessing_of(self, picture: Image.Image) -> Preprocessing:
        return self.at_scale(picture) if self.is_tiled(picture) else self.preprocessing

    def find(self, picture: Image.Image, pixels: Tensor) -> np.ndarray:
        """The class of each pixel of an image, (H, W). pixels: those of `pixels`."""
        task = self.task
        task.inference, task.window, task.stride = self.own_inference
        if self.is_tiled(picture):
            # The task's sliding windows are the tiles; where they overlap, their logits are averaged.
            stride = round(self.tile_input * (1 - self.overlap / self.tile))
            task.inference, task.window, task.stride = "slide", self.tile_input, max(1, stride)
        image = self.preprocessing_of(picture).normalize(pixels[None].to(self.device))
        return task.predict_classes(image, size_of(picture)).cpu().numpy()


def size_of(picture: Image.Image) -> tuple[int, int]:
    """(height, width)."""
    return picture.height, picture.width
