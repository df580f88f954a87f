"""The models by name: a new one is a file in this room and a line in MODELS."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from ..errors import choose
from .variants import VARIANTS
from .xcit import XCiT

# name → builder; its keyword arguments are the options that conf/model/NAME.yaml may set.
MODELS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(XCiT, **variant) for name, variant in VARIANTS.items()},
}


def create_model(name: str, *, num_classes: int = 1000, **options: Any) -> nn.Module:
    """A freshly initialised model.

    Args:
        name: one of `list_models()`.
        num_classes: outputs of the classifier; 0 leaves it out.
        options: the model's own; for XCiT `patch_size` (16), `drop_path_rate` (0.0), `in_chans` (3), `patch_embed`
            ("conv") and whatever else `XCiT` takes.

    Raises:
        InputError: the name is not in the table, or an option is out of range.
    """
    return choose(MODELS, name, "model")(num_classes=num_classes, **options)


def list_models() -> list[str]:
    """The names that `create_model` knows."""
    return list(MODELS)
