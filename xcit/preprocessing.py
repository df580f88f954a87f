"""Converts an image to the model's input. Training's evaluation, eval.py and exports share this object.

It is saved in each checkpoint, so that an evaluation uses the normalization that the model was trained with. It needs
torch. Pillow and numpy are needed only for Pillow images and arrays.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError
from .orientation import upright

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bicubic", "bilinear")
RESIZE_RULES = ("crop", "letterbox", "squash", "shortest")
TIMM_CROP_MODES = {"crop": "center", "letterbox": "border", "squash": "squash", "shortest": "center"}
PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""The mode of an 8-bit Pillow image by its number of channels."""


@dataclass(frozen=True)
class Preprocessing:
    """What a model expects of its images.

    Args:
        size: (height, width) of the model's input in pixels.
        channels: of an image.
        bit_depth: bits of a pixel's channel; 8 means integers from 0 to 255, which are scaled to [0, 1].
        resize: "crop" resizes until the image covers the size and cuts out the center, "letterbox" resizes until it
            fits into the size and pads with the mean color, "squash" ignores the aspect ratio. "shortest" keeps the
            whole image and its aspect ratio, for detection and segmentation: size is then (length of the shorter side,
            largest length of the longer side), and each image has a size of its own.
        crop_ratio: images are resized to size / crop_ratio before the center of `size` is cut out.
        interpolation: "bicubic" or "bilinear", both with antialiasing.
        mean, std: of each channel, for pixels scaled to [0, 1].
        value_range: lowest and highest value of a pixel's channel, which are scaled to 0 and 1, instead of `bit_depth`:
            for floats, and for integers of another range. Values out of the range are scaled alike, not cut off.

    Raises:
        InputError: a value is out of range.
    """

    size: tuple[int, int] = (224, 224)
    channels: int = 3
    bit_depth: int = 8
    resize: Literal["crop", "letterbox", "squash", "shortest"] = "crop"
    crop_ratio: float = 1.0
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        sides = self.size if isinstance(self.size, tuple) else ()
        if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
            raise InputError(f"size={self.size}: must be (height, width) in pixels, both at least 1")
        if not isinstance(self.channels, int) or self.channels < 1:
            raise InputError(f"channels={self.channels}: must be at least 1")
        if not 0 < self.crop_ratio <= 1:
            raise InputError(f"crop_ratio={self.crop_ratio}: must be greater than 0 and at most 1")
        if not 1 <= self.bit_depth <= 16:
            raise InputError(f"bit_depth={self.bit_depth}: must be 1 to 16")
        bounds = self.value_range or (0, 1)
        if len(bounds) != 2 or not all(map(math.isfinite, bounds)) or bounds[0] >= bounds[1]:
            raise InputError(f"value_range={self.value_range}: must hold the lowest and the highest value, both finite")
        for key, value, accepted in (
            ("resize", self.resize, RESIZE_RULES),
            ("interpolation", self.interpolation, INTERPOLATIONS),
        ):
            if value not in accepted:
                raise InputError(f"{key}={value}: must be one of {', '.join(accepted)}")
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels or not all(math.isfinite(value) for value in values):
                raise InputError(f"{key}={values}: must hold {self.channels} finite values, one for each channel")
        if min(self.std) <= 0:
            raise InputError(f"std={self.std}: must be greater than 0")

    @classmethod
    def of_model(cls, model: nn.Module) -> "Preprocessing":
        """From a model's `pretrained_cfg` (timm's dictionary); ImageNet's defaults for keys that it lacks."""
        return cls.from_timm(pretrained_cfg(model))

    @classmethod
    def from_timm(cls, cfg: Mapping[str, Any]) -> "Preprocessing":
        """From a dictionary with timm's keys, and with those of `as_timm` that timm does not have."""
        default = cls()
        channels, *size = cfg.get("input_size", (default.channels, *default.size))
        # If the channels differ from the cfg's, use the mean of its statistics. Users should give their own.
        mean, std = (spread(cfg.get(key, getattr(default, key)), channels) for key in ("mean", "std"))
        return cls(
            size=(size[0], size[1]),
            channels=channels,
            crop_ratio=cfg.get("crop_pct", default.crop_ratio),
            interpolation=cfg.get("interpolation", default.interpolation),
            mean=mean,
            std=std,
            resize=cfg.get("resize", default.resize),
            bit_depth=cfg.get("bit_depth", default.bit_depth),
            value_range=tuple(found) if (found := cfg.get("value_range")) else None,
        )

    def as_timm(self) -> dict[str, Any]:
        """The inverse of `from_timm`: what timm's `resolve_model_data_config` reads, and what it does not know."""
        return {
            "input_size": (self.channels, *self.size),
            "mean": self.mean,
            "std": self.std,
            "crop_pct": self.crop_ratio,
            "crop_mode": TIMM_CROP_MODES[self.resize],
            "interpolation": self.interpolation,
            "resize": self.resize,
            "bit_depth": self.bit_depth,
            "value_range": self.value_range,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of `as_dict`. Keys that an older version did not know take their defaults."""
        known = {field.name for field in fields(cls)}
        unknown = [key for key in values if key not in known]
        if unknown:
            raise InputError(f"preprocessing: unknown key {unknown[0]}; known ones: {', '.join(sorted(known))}")
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**plain)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint or a JSON file."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def at(self, size: int | tuple[int, int], crop_ratio: float | None = None) -> "Preprocessing":
        """The same for another input size, and another crop ratio if one is given.

        An int is the shorter side, and the longer one changes in proportion.
        """
        if isinstance(size, int):
            H, W = (max(1, round(size * side / min(self.size))) for side in self.size)
            size = (H, W)
        return replace(self, size=size, crop_ratio=self.crop_ratio if crop_ratio is None else crop_ratio)

    @property
    def bounds(self) -> tuple[float, float]:
        """The values of a pixel's channel that are scaled to 0 and 1."""
        return self.value_range or (0, 2**self.bit_depth - 1)

    @property
    def dtype(self) -> torch.dtype:
        """The type of `pixels`: uint8, int32 above 8 bits, or fp32 with a value_range."""
        return torch.float32 if self.value_range else torch.uint8 if self.bit_depth <= 8 else torch.int32

    @property
    def is_rgb_of_8_bits(self) -> bool:
        """Whether the images are as photographs are."""
        return (self.channels, self.bit_depth, self.value_range) == (3, 8, None)

    def pixel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel in the values of the pixels, fp32."""
        low, high = self.bounds
        return low + (high - low) * torch.tensor(self.mean), (high - low) * torch.tensor(self.std)

    def __call__(self, images: Sequence[Any]) -> Tensor:
        """The model's input, (B, C, H, W) in fp32, for a list of pictures: Pillow images, arrays or tensors (H, W, C).

        Raises:
            InputError: there is no list of pictures, or one does not have the channels or the bit depth.
        """
        shape: tuple[int, ...] = getattr(images, "shape", ())
        is_one = hasattr(images, "convert") or (len(shape) == 3 and shape[-1] == self.channels)
        if is_one or not isinstance(images, Iterable):
            raise InputError(f"images of type {type(images).__name__}: must be a list of images; [image] for one")
        pixels = [self.pixels(image) for image in images]
        if not pixels:
            raise InputError("images: must hold at least one image")
        if len({image.shape for image in pixels}) > 1:
            raise InputError(f"images: have different sizes with resize={self.resize!r}; give them one at a time")
        return self.normalize(torch.stack(pixels))

    def pixels(self, image: Any) -> Tensor:
        """One picture, resized and cut to (H, W, C), of `dtype`.

        Pillow resizes 8-bit Pillow images in gray or RGB, because the published accuracies were measured that way.
        torch resizes all others. (Pillow would multiply the colors of RGBA by alpha.)
        """
        if hasattr(image, "convert"):
            image = self.converted(upright(image))
            if (self.bit_depth, self.value_range) == (8, None) and self.channels in (1, 3):
                return self.resize_pillow(image)
        return self.resize_tensor(self.as_tensor(image))

    def converted(self, image: Any) -> Any:
        """A Pillow image in the mode of these channels, if they have 8 bits and there is such a mode."""
        if self.value_range:
            return image.convert("RGB") if image.mode == "P" else image
        if self.bit_depth > 8 and image.mode in ("L", "RGB", "RGBA"):
            raise InputError(f"image of mode {image.mode}: holds 8 bits, not the {self.bit_depth} of bit_depth")
        if self.bit_depth != 8 or self.channels not in PIL_MODES:
            return image
        if image.mode.startswith(("I", "F")):
            raise InputError(f"image of mode {image.mode}: holds more than the 8 bits of bit_depth=8")
        return image.convert(PIL_MODES[self.channels])

    def normalize(self, pixels: Tensor) -> Tensor:
        """(B, H, W, C), pixels → (B, C, H, W), fp32 with the channels last in memory: (scaled - mean) / std."""
        mean, std = (values.to(pixels.device) for values in self.pixel_statistics())
        return pixels.to(torch.float32, copy=True).sub_(mean).div_(std).permute(0, 3, 1, 2)

    def denormalize(self, images: Tensor) -> Tensor:
        """(B, C, H, W), fp32 → (B, H, W, C), uint8 from 0 to 255, for display. Out-of-range values are clipped."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (255 * (images.cpu() * std + mean)).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()

    def resize_pillow(self, image: Any) -> Tensor:
        import numpy as np
        from PIL import Image  # here, since `import xcit` must not need it

        resized = self.resized_size(image.height, image.width)
        if (image.height, image.width) != resized:
            image = image.resize(resized[::-1], Image.Resampling[self.interpolation.upper()])
        return self.cut_or_pad(torch.from_numpy(np.array(image).reshape(*resized, self.channels)))

    def resize_tensor(self, pixels: Tensor) -> Tensor:
        resized = self.resized_size(*pixels.shape[:2])
        if tuple(pixels.shape[:2]) != resized:
            image = pixels.permute(2, 0, 1)[None].float()
            image = F.interpolate(image, resized, mode=self.interpolation, antialias=True)
            pixels = self.as_pixels(image[0].permute(1, 2, 0))
        return self.cut_or_pad(pixels)

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image is resized to before the center is cut out or padding is added."""
        if not height * width:
            raise InputError(f"image of {height} × {width} pixels: must have at least one")
        if self.resize == "shortest":
            scale = min(self.size[0] / min(height, width), self.size[1] / max(height, width))
            return max(1, round(height * scale)), max(1, round(width * scale))
        goal_h, goal_w = (math.floor(side / self.crop_ratio) for side in self.size)
        if self.resize == "squash":
            return goal_h, goal_w
        # The side that sets the scale: for "crop" the one that needs the larger factor, for "letterbox" the other one.
        height_decides = (goal_h * width >= goal_w * height) == (self.resize == "crop")
        if height_decides:
            return goal_h, max(1, int(goal_h * width / height))
        return max(1, int(goal_w * height / width)), goal_w

    def cut_or_pad(self, pixels: Tensor) -> Tensor:
        """The center of `size`; sides that are shorter are padded with the mean, which is 0 once it is normalized."""
        if self.resize == "shortest":
            return pixels
        H, W = self.size
        top, left = (round((have - want) / 2) for have, want in zip(pixels.shape[:2], self.size, strict=True))
        cut = pixels[max(top, 0) : max(top, 0) + H, max(left, 0) : max(left, 0) + W]
        if cut.shape[:2] == (H, W):
            return cut
        padded = self.as_pixels(self.pixel_statistics()[0]).expand(H, W, -1).clone()
        top, left = (H - cut.shape[0]) // 2, (W - cut.shape[1]) // 2
        padded[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
        return padded

    def as_pixels(self, values: Tensor) -> Tensor:
        """fp32 → `dtype`: integers are rounded, and cut off at the bounds; floats stay as they are."""
        return values if self.value_range else values.round().clamp(*self.bounds).to(self.dtype)

    def as_tensor(self, image: Any) -> Tensor:
        """(H, W, C), of `dtype`, of an array, a tensor or a Pillow image that Pillow cannot convert by itself."""
        from .pixel_arrays import to_tensor  # here, since `import xcit` must not need numpy

        image = image if isinstance(image, Tensor) else to_tensor(image)
        image = image[..., None] if image.ndim == 2 else image
        if image.ndim != 3 or image.shape[-1] != self.channels:
            raise InputError(f"image of shape {tuple(image.shape)}: must be (H, W, {self.channels})")
        if self.value_range and not image.is_complex():
            if image.isfinite().all():
                return image.float()
            raise InputError("image with values that are infinite or not a number: must be finite")
        high = self.bounds[1]
        if image.is_floating_point() or image.is_complex() or image.dtype == torch.bool:
            accepted = f"integers from 0 to {high}; only a run with data.value_range takes floats"
            raise InputError(f"image of {str(image.dtype).removeprefix('torch.')}: must hold {accepted}")
        if image.dtype == torch.uint8 and self.bit_depth > 8:
            raise InputError(f"image of uint8: holds 8 bits, not the {self.bit_depth} of bit_depth")
        if image.numel() and not 0 <= int(image.min()) <= int(image.max()) <= high:
            found, wanted = f"values from {int(image.min())} to {int(image.max())}", f"must be 0 to {high}"
            raise InputError(f"image with {found}: {wanted} with bit_depth={self.bit_depth}")
        return image.to(self.dtype)


def pretrained_cfg(model: nn.Module) -> Mapping[str, Any]:
    """timm's dictionary of a model; empty if the model has none."""
    return getattr(model, "pretrained_cfg", None) or {}


def spread(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """The values if there is one for each channel, otherwise their mean for every channel."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels
