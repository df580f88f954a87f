"""Builds a model on the meta device to check its options and image sizes."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..preprocessing import Preprocessing
from . import create_model
from .options import height_and_width
from .xcit import XCiT


def dry_run(name: str, options: Mapping[str, Any], sizes: Mapping[str, Iterable[int | tuple[int, int]]]) -> nn.Module:
    """Build the model on PyTorch's meta device, where tensors have a shape but no content, and try the image sizes.

    Args:
        name, options: see `create_model`.
        sizes: key of the configuration → sizes of images, in pixels, that the model must take: of squares, or
            (height, width).

    Raises:
        InputError: an option is out of range, or the model does not take a size. The message names the key.
    """
    with torch.device("meta"):
        try:
            model = create_model(name, **options).eval()
        except InputError as error:
            raise InputError(f"model.{str(error).removeprefix('model.')}") from None
        for key, values in sizes.items():
            for size in values:
                require_size(model, key, size)
    return model


def takes_size(model: nn.Module, size: int) -> bool:
    """Whether a model on the meta device takes square images of this size in pixels."""
    try:
        require_size(model, "size", size)
    except InputError:
        return False
    return True


@torch.inference_mode()
def require_statistics(model: nn.Module, images: int, size: int, *, frozen: bool) -> None:
    """Raise an InputError if a BatchNorm takes its statistics over one value: that of one image of one patch.

    Args:
        model: on the meta device.
        images: in each pass, over all processes.
        size: the smallest of the training sizes, in pixels.
        frozen: whether all BatchNorms keep their statistics. Those of frozen parts do in any case.
    """
    if images > 1 or frozen:
        return
    model.train()
    for module in model.modules():
        if not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()
    try:
        model(torch.empty(1, Preprocessing.of_model(model).channels, size, size, device="meta"))
    except NotImplementedError:
        pass  # an operator does not support the meta device
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            f"train.global_batch_size: at {size} pixels the model needs at least 2 images in each pass, because a "
            "BatchNorm takes its statistics over one value of each image"
        ) from None
    finally:
        model.eval()


@torch.inference_mode()
def require_size(model: nn.Module, key: str, size: int | tuple[int, int]) -> None:
    H, W = height_and_width(size)
    images = torch.empty(1, Preprocessing.of_model(model).channels, H, W, device="meta")
    try:
        # An XCiT's layers take any grid, so trying its stem is enough.
        (model.embed if isinstance(model, XCiT) else model)(images)
    except NotImplementedError:
        pass  # an operator does not support the meta device, so the size cannot be tried
    except (InputError, AssertionError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        given = H if H == W else [H, W]
        raise InputError(f"{key}={given}: the model does not take images of this size ({reason})") from None
