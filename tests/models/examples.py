"""Helpers for tests of models: small models in which every weight changes the output, and files of other libraries."""

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import xcit
from scripts.parity import make_weights_tell


def tiny(**options: Any) -> xcit.XCiT:
    """Two layers of the narrowest variant at patch 8, in evaluation mode, with weights unlike their initial values."""
    return copy.deepcopy(made(**options))


@functools.cache
def made(**options: Any) -> xcit.XCiT:
    torch.manual_seed(0)
    model = xcit.create_model("xcit_n12", **{"depth": 2, "patch_size": 8, "num_classes": 7} | options)
    assert isinstance(model, xcit.XCiT)
    make_weights_tell(model)
    return model.eval()


def moved(state: Mapping[str, Tensor], by: float) -> dict[str, Tensor]:
    """The state with different numbers in every tensor, to tell the two states apart."""
    return {key: value + by if value.is_floating_point() else value + int(10 * by) for key, value in state.items()}


def authors_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with the authors' names: `pos_embeder`, and one qkv in the class attention."""
    state = dict(state)
    for key in [key for key in state if key.startswith("cls_attn_blocks.") and ".attn.q." in key]:
        parts = [state.pop(key.replace(".q.", f".{name}.")) for name in "qkv"]
        state[key.replace(".q.", ".qkv.")] = torch.cat(parts)
    return {key.replace("pos_embed.", "pos_embeder."): value for key, value in state.items()}


def snapshot(model: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether names and tensors are equal, bit for bit."""
    return state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)


class Intruder:
    """Unpickling it calls a function that creates the file `intruded`."""

    def __init__(self, folder: Path) -> None:
        self.mark = folder / "intruded"

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.mark,))
