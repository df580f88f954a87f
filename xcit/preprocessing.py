"""What a model expects of its images, told as timm tells it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class DataSettings(NamedTuple):
    """mean and std are of RGB in [0, 1]; image_size is in pixels, crop_ratio its share of the resized short side."""

    image_size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_ratio: float = 1.0
    interpolation: str = "bicubic"

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What a transform needs to know of the model."""
        return {"mean": self.mean, "std": self.std, "interpolation": self.interpolation}


def data_settings(model: nn.Module) -> DataSettings:
    """The settings of a model, from its `pretrained_cfg` (timm's dictionary); ImageNet's where it says nothing."""
    cfg, plain = told(model), DataSettings()
    return DataSettings(
        image_size=cfg.get("input_size", (3, plain.image_size))[-1],
        mean=tuple(cfg.get("mean", plain.mean)),
        std=tuple(cfg.get("std", plain.std)),
        crop_ratio=cfg.get("crop_pct", plain.crop_ratio),
        interpolation=cfg.get("interpolation", plain.interpolation),
    )


def told(model: nn.Module) -> Mapping[str, Any]:
    """timm's dictionary of a model: empty, where it has none."""
    cfg: Any = getattr(model, "pretrained_cfg", None)
    return cfg or {}
