"""Weights in and out of files: timm's key names, which are ours, and the authors'."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from ..storage import load_exactly, read_tensors


def load_weights(model: nn.Module, source: str | Path | Mapping[str, Any]) -> None:
    """Load published weights into an XCiT, in place.

    Args:
        model: the XCiT that they are for.
        source: a state dict, or the path of a file that torch.save wrote; with timm's key names or the authors', bare
            or as {"model": state dict}. Files are read with weights_only=True: one that carries code is refused.

    Raises:
        InputError: the file cannot be read, or its keys or shapes are not the model's (they are listed); the model is
            then as it was.
    """
    if isinstance(source, Mapping):
        state, origin = source, "the state dict"
    else:
        state, origin = read_tensors(source), str(source)
    load_exactly(model, to_timm_names(state_dict_of(state, origin)), origin)


def state_dict_of(content: Mapping[str, Any], origin: str) -> dict[str, Tensor]:
    """The tensors by name, bare or under "model"."""
    state = content.get("model", content)
    if not isinstance(state, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise InputError(f"{origin}: holds no state dict (tensors by name, bare or under 'model')")
    return dict(state)


def to_timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' key names as timm's; others stay.

    The authors call the position encoding `pos_embeder` and keep the class attention's three projections in one.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        key = key.replace("pos_embeder.", "pos_embed.")
        if key.startswith("cls_attn_blocks.") and ".attn.qkv." in key:
            for name, part in zip("qkv", value.chunk(3), strict=True):
                renamed[key.replace(".qkv.", f".{name}.")] = part
        else:
            renamed[key] = value
    return renamed
