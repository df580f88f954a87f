"""The paper's ablation (table 4 and appendix) as options of `XCiT`, one switch at a time."""

from typing import Any

# name → (description, options)
ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "xcit": ("XCiT", {}),
    "no_lpi": ("no local patch interaction", {"lpi": False}),
    "no_xca": ("no cross-covariance attention", {"attention": "none"}),
    "linear": ("linear patch projection", {"patch_embed": "linear"}),
    "no_l2_norm": ("no L2 normalization", {"l2_norm": False}),
    "no_temperature": ("no learned temperature", {"temperature": False}),
    "self_attention": ("self-attention between tokens", {"attention": "self_attention"}),
    "average_pool": ("average pooling, no class attention", {"pool": "average"}),
    "learned_position": ("learned positions", {"position": "learned"}),
    "no_position": ("no positions", {"position": "none"}),
    "one_head": ("one head", {"heads": 1}),
    "sixteen_heads": ("sixteen heads", {"heads": 16}),
}


def as_overrides(options: dict[str, Any]) -> list[str]:
    """The options as arguments of train.py, such as model.lpi=false."""
    return [f"model.{key}={str(value).lower()}" for key, value in options.items()]
