"""A model tried out without computing anything: does it build, and does it take these image sizes?"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from . import create_model
from .xcit import XCiT


def dry_run(name: str, options: Mapping[str, Any], sizes: Mapping[str, Iterable[int]]) -> nn.Module:
    """The model on torch's meta device, where a tensor has a shape and no content.

    Args:
        name, options: as for `create_model`.
        sizes: key of the configuration → square image sizes in pixels that the model has to take.

    Raises:
        InputError: an option is out of range, or a size is refused; it names the key.
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


@torch.inference_mode()
def require_size(model: nn.Module, key: str, size: int) -> None:
    try:
        # An XCiT's layers take any grid: what it has to say of a size, its stem says.
        (model.embed if isinstance(model, XCiT) else model)(torch.empty(1, 3, size, size))
    except NotImplementedError:
        pass  # an operator that knows no meta device: nothing is said against the size
    except (InputError, AssertionError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{key}={size}: the model does not take images of this size ({reason})") from None
