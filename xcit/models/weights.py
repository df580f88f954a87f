"""Weights in and out of files: timm's key names, which are ours, and the authors'."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError


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
        state, origin = read_file(source), str(source)
    load_exactly(model, to_timm_names(state.get("model", state)), origin)


def read_file(path: str | Path) -> Mapping[str, Any]:
    """The mapping stored in a file, on the CPU."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, not a file of weights") from None
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        # torch reports damage in as many ways as there are places in the file.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: not a file of weights that can be read safely ({reason[:160]})") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a dictionary of weights")
    return content


def to_timm_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """The authors' key names as timm's; others stay.

    The authors call the position encoding `pos_embeder` and keep the class attention's three projections in one.
    """
    renamed: dict[str, Any] = {}
    for key, value in state.items():
        key = key.replace("pos_embeder.", "pos_embed.")
        if key.startswith("cls_attn_blocks.") and ".attn.qkv." in key:
            for name, part in zip("qkv", value.chunk(3), strict=True):
                renamed[key.replace(".qkv.", f".{name}.")] = part
        else:
            renamed[key] = value
    return renamed


def load_exactly(module: nn.Module, state: Mapping[str, Any], origin: str) -> None:
    """load_state_dict, strict, with an InputError that lists what differs and leaves the module as it was."""
    own = module.state_dict()
    differences = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} ({shape_of(state[key])}, the model's is {shape_of(own[key])})"
            for key in own
            if key in state and shape_of(state[key]) != shape_of(own[key])
        ],
    }
    lines = [f"  {len(keys)} {kind}: {', '.join(keys[:3])}{', …' * (len(keys) > 3)}" for kind, keys in differences.items() if keys]
    if lines:
        raise InputError("\n".join([f"{origin}: belongs to another architecture", *lines]))
    module.load_state_dict(dict(state))


def shape_of(value: object) -> str:
    return "×".join(map(str, value.shape)) or "scalar" if isinstance(value, Tensor) else type(value).__name__
