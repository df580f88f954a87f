"""The seven published variants (paper, table 1)."""

from collections.abc import Mapping
from typing import Any, TypedDict


class Variant(TypedDict):
    dim: int
    depth: int
    heads: int
    layer_scale_init: float
    tokens_norm: bool


VARIANTS: dict[str, Variant] = {
    "xcit_n12": {"dim": 128, "depth": 12, "heads": 4, "layer_scale_init": 1.0, "tokens_norm": False},
    "xcit_t12": {"dim": 192, "depth": 12, "heads": 4, "layer_scale_init": 1.0, "tokens_norm": True},
    "xcit_t24": {"dim": 192, "depth": 24, "heads": 4, "layer_scale_init": 1e-5, "tokens_norm": True},
    "xcit_s12": {"dim": 384, "depth": 12, "heads": 8, "layer_scale_init": 1.0, "tokens_norm": True},
    "xcit_s24": {"dim": 384, "depth": 24, "heads": 8, "layer_scale_init": 1e-5, "tokens_norm": True},
    "xcit_m24": {"dim": 512, "depth": 24, "heads": 8, "layer_scale_init": 1e-5, "tokens_norm": True},
    "xcit_l24": {"dim": 768, "depth": 24, "heads": 16, "layer_scale_init": 1e-5, "tokens_norm": True},
}


def named(options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Replace the arguments of an XCiT that a variant fixes by the variant's name. None if no variant fits."""
    for name, variant in VARIANTS.items():
        fixed = {key: value for key, value in variant.items() if key != "heads"}
        if fixed.items() <= options.items():
            return {"name": name} | {key: value for key, value in options.items() if key not in fixed}
    return None
