"""timm's names for models and for their arguments, in our terms."""

from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from ..weights.published import PUBLISHED, Published

NAMES = {
    "img_size": "image_size",
    "embed_dim": "dim",
    "num_heads": "heads",
    "eta": "layer_scale_init",
    "cls_attn_layers": "class_depth",
    "use_pos_embed": "position",
}
"""timm's name of an argument → ours."""
FIXED: dict[str, tuple[Any, ...]] = {
    "mlp_ratio": (4,),
    "qkv_bias": (True,),
    "feature_cls": ("getter",),
    "scriptable": (True, False),
    "exportable": (True, False),
    "no_jit": (True, False),
}
"""Arguments of timm that change nothing here → the values that are accepted: those that an XCiT of ours always has."""


def find_by_full_name(name: str) -> Published | None:
    """The published weights with timm's name, such as xcit_small_12_p16_224.fb_in1k, or ours, xcit_s12_p16.fb_in1k.

    Without the tag they are timm's default ones, fb_in1k. None if there are none.
    """
    name = name.removeprefix("timm/")
    entries = list(reversed(PUBLISHED.values()))
    names = {key: entry for entry in entries for key in (entry.name, entry.timm_name) if key}
    untagged = {key.partition(".")[0]: entry for key, entry in names.items()}
    return names.get(name) or untagged.get(name)


def in_our_terms(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an XCiT, with our names instead of timm's.

    Raises:
        InputError: a value of timm's argument is not supported, or both names are given.
    """
    ours = {key: value for key, value in options.items() if key not in NAMES and key not in FIXED}
    for key in options.keys() & FIXED.keys():
        if options[key] not in FIXED[key]:
            accepted = " or ".join(map(repr, FIXED[key]))
            raise InputError(f"{key}={options[key]!r}: must be {accepted}; an XCiT has no other")
    for key in options.keys() & NAMES.keys():
        if NAMES[key] in ours:
            raise InputError(
                f"{key}={options[key]!r}, {NAMES[key]}={ours[NAMES[key]]!r}: are the same argument; give one"
            )
        ours[NAMES[key]] = our_value(key, options[key])
    return ours


def our_value(key: str, value: Any) -> Any:
    """The value for our name of timm's argument `key`."""
    if key == "use_pos_embed":
        if not isinstance(value, bool):
            raise InputError(f"use_pos_embed={value!r}: must be True or False")
        return "sine" if value else "none"
    if key == "img_size" and isinstance(value, (tuple, list)):  # (height, width)
        if len(set(value)) != 1:
            raise InputError(
                f"img_size={value}: must be one number of pixels, or the same twice; the model takes any size"
            )
        return value[0]
    return value
