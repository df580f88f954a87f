"""What is exported: the model, with the normalization of its pixels before it, for images of any number and size."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from ..errors import InputError
from ..models.position import LearnedPositionEncoding
from ..models.xcit import XCiT
from ..preprocessing import Preprocessing

BATCH_SIZES = (1, 3)
"""The batch sizes at which an export is compared with the model."""


class Exportable(nn.Module):
    """The model as it is exported.

    Args:
        model: Images → logits, or features.
        preprocessing: What the model expects of its images.
        normalizes: Whether it takes pixels (B, H, W, C) as `Preprocessing.pixels` makes them, and normalizes them;
            otherwise it takes normalized images (B, C, H, W) in fp32.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, normalizes: bool) -> None:
        super().__init__()
        self.model, self.preprocessing, self.normalizes = model.eval(), preprocessing, normalizes

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.preprocessing.normalize(images) if self.normalizes else images)

    def takes(self, pixels: Tensor) -> Tensor:
        """The input for these pixels, (B, H, W, C)."""
        return pixels if self.normalizes else self.preprocessing.normalize(pixels).contiguous()

    def random(self, batch_size: int, size: tuple[int, int]) -> Tensor:
        """An input of random pixels over the whole range, always the same."""
        low, high = self.preprocessing.bounds
        shape = (batch_size, *size, self.preprocessing.channels)
        values = low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))
        return self.takes(self.preprocessing.as_pixels(values))


class Signature(NamedTuple):
    """The input and the output of an export, as in its JSON file."""

    input: dict[str, Any]
    output: dict[str, Any]
    dynamic: tuple[dict[int, Any]]
    """The dimensions of the input that may change, for torch.export."""


def signature(exportable: Exportable, patch_size: int) -> Signature:
    """The name, shape and type of the input and the output.

    torch.export treats a side of one patch as a constant, so each side must be larger than a patch.
    """
    channels = exportable.preprocessing.channels
    model: Any = exportable.model
    shape: list[int | str] = ["batch", "height", "width"]
    shape.insert(len(shape) if exportable.normalizes else 1, channels)
    dtype = exportable.preprocessing.dtype if exportable.normalizes else torch.float32
    dims = {"batch": Dim("batch"), **{name: Dim(name, min=patch_size + 1) for name in ("height", "width")}}
    name, outputs = ("logits", model.num_classes) if model.num_classes else ("features", model.num_features)
    return Signature(
        input={
            "name": "pixels" if exportable.normalizes else "images",
            "shape": shape,
            "dtype": str(dtype).removeprefix("torch."),
            "smallest_side": patch_size + 1,
        },
        output={"name": name, "shape": ["batch", outputs], "dtype": "float32"},
        dynamic=({place: dims[str(side)] for place, side in enumerate(shape) if side in dims},),
    )


def require_exportable(model: nn.Module, preprocessing: Preprocessing) -> XCiT:
    """The model, if it can be exported.

    Raises:
        InputError: it is no XCiT, or its input cannot have any size.
    """
    if not isinstance(model, XCiT):
        raise InputError(f"model of type {type(model).__name__}: only XCiT can be exported")
    if isinstance(model.pos_embed, LearnedPositionEncoding):
        raise InputError("model with position=learned: cannot be exported for images of any size")
    if min(preprocessing.size) <= model.patch_size:
        raise InputError(
            f"model for images of {preprocessing.size[0]} × {preprocessing.size[1]} pixels: exports "
            f"need sides of more than one patch, which is {model.patch_size} pixels here"
        )
    return model


def sizes_to_check(size: tuple[int, int], patch_size: int) -> list[tuple[int, int]]:
    """Three sizes, (height, width): the model's own, another shape, and one that the patch does not divide."""
    height, width = size
    return [size, (height + 2 * patch_size, width), (max(height // 2, patch_size) + 1, width + 1)]
