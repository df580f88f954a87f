"""Weights into models, and their formats: timm's key names, which are ours, and the authors'."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import is_checkpoint, model_weights
from ..errors import InputError, Notice
from ..preprocessing import told
from ..storage import load_exactly, read_tensors
from .sources import locate

State = dict[str, Tensor]

# Under which key a training script keeps its weights and their moving average; the authors', then timm's.
WRAPPERS = (("model", "model_ema"), ("state_dict", "state_dict_ema"))


@dataclass(frozen=True)
class Weights:
    """What a file of weights holds, by our names: "raw", and "ema" where a moving average was kept."""

    origin: str
    kinds: dict[str, State]

    def state(self, kind: str | None = None) -> State:
        """Of one kind; by default the moving average where there is one."""
        if kind is None:
            kind = "ema" if "ema" in self.kinds else "raw"
            if len(self.kinds) > 1:
                warnings.warn(f"{self.origin}: holds raw weights and their moving average, which is taken", Notice, 2)
        if kind not in self.kinds:
            raise InputError(f"weights={kind}: {self.origin} holds {' and '.join(self.kinds)} alone")
        return self.kinds[kind]


def load_weights(model: nn.Module, source: str | Path | Mapping[str, Any], kind: str | None = None) -> None:
    """Load weights into a model, in place.

    Where they are for another number of classes (or for none), the classifier stays as it is, and a `Notice` says so.

    Args:
        model: the model that they are for.
        source: whatever `locate` finds (a file, a run folder, the name of published weights), or what such a file
            holds. Key names may be timm's or the authors'. Files are torch's or safetensors; one that carries code is
            refused.
        kind: "raw" or "ema"; by default the moving average where the file has one.

    Raises:
        InputError: the source cannot be found or read, or its keys or shapes are not the model's (they are listed);
            the model is then as it was.
    """
    weights = read_weights(source)
    state, notice = with_head_of(model, weights.state(kind), weights.origin)
    load_exactly(model, state, weights.origin)
    if notice:
        warnings.warn(notice, Notice, stacklevel=2)


def read_weights(source: str | Path | Mapping[str, Any]) -> Weights:
    """The model's weights in a file, or in the content of one, by timm's key names."""
    if isinstance(source, Mapping):
        return weights_in(source, "the state dict")
    path = locate(str(source))
    return weights_in(read_tensors(path), str(path))


def weights_in(content: Mapping[str, Any], origin: str) -> Weights:
    """The weights by kind, from a run's checkpoint, a training script's, a DINO checkpoint or a bare state dict."""
    if is_checkpoint(content):
        return Weights(origin, model_weights(content))
    if "teacher" in content:
        return Weights(origin, {"raw": backbone_of_dino(state_dict(content["teacher"], origin))})
    kinds = {"raw": content}
    for raw, ema in WRAPPERS:
        if isinstance(content.get(raw), Mapping):
            kinds = {"raw": content[raw]} | ({"ema": content[ema]} if content.get(ema) else {})
    return Weights(origin, {kind: to_timm_names(state_dict(state, origin)) for kind, state in kinds.items()})


def state_dict(state: object, origin: str) -> State:
    """The tensors by name, without the prefixes that DistributedDataParallel and torch.compile leave."""
    if isinstance(state, Mapping) and state and all(names_tensor(*item) for item in state.items()):
        return {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in state.items()}
    raise InputError(f"{origin}: holds no state dict (tensors by name, bare or under 'model' or 'state_dict')")


def names_tensor(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor)


def backbone_of_dino(teacher: State) -> State:
    """The backbone in DINO's teacher, which is what the published accuracies are of; its projection head is dropped."""
    prefix = "backbone."
    return to_timm_names({k.removeprefix(prefix): v for k, v in teacher.items() if k.startswith(prefix)})


def with_head_of(model: nn.Module, state: State, origin: str) -> tuple[State, str | None]:
    """The state with the model's own classifier where the state's is for another number of classes; and a notice."""
    own = model.state_dict()
    head = head_prefix(model)
    here = {key: value for key, value in own.items() if key.startswith(head)}
    there = {key: value for key, value in state.items() if key.startswith(head)}
    if here.keys() == there.keys() and all(here[key].shape[:1] == there[key].shape[:1] for key in here):
        return state, None
    if here and there and here.keys() != there.keys():
        return state, None  # no classifier of another size, but half of one: an error like any other
    rest = {key: value for key, value in state.items() if key not in there}
    if not here:
        notice = f"its classifier of {outputs(there)} classes is left out, as the model has none"
    elif not there:
        notice = f"holds no classifier; the model's of {outputs(here)} classes starts anew"
    else:
        notice = f"its classifier of {outputs(there)} classes is left out; the model's of {outputs(here)} starts anew"
    return rest | here, f"{origin}: {notice}"


def head_prefix(model: nn.Module) -> str:
    """What the names of the classifier's weights begin with."""
    configured = told(model).get("classifier")
    return f"{configured if isinstance(configured, str) else 'head'}."


def outputs(head: State) -> int:
    return next(iter(head.values())).shape[0]


def to_timm_names(state: Mapping[str, Tensor]) -> State:
    """The authors' key names as timm's; others stay.

    The authors call the position encoding `pos_embeder` and keep the class attention's three projections in one.
    """
    renamed: State = {}
    for key, value in state.items():
        key = key.replace("pos_embeder.", "pos_embed.")
        if key.startswith("cls_attn_blocks.") and ".attn.qkv." in key:
            for name, part in zip("qkv", value.chunk(3), strict=True):
                renamed[key.replace(".qkv.", f".{name}.")] = part
        else:
            renamed[key] = value
    return renamed


def to_authors_names(state: Mapping[str, Tensor]) -> State:
    """timm's key names as the authors'; the inverse of `to_timm_names`."""
    renamed: State = {}
    for key, value in state.items():
        if key.startswith("cls_attn_blocks.") and ".attn.q." in key:
            parts = [state[key.replace(".q.", f".{name}.")] for name in "qkv"]
            renamed[key.replace(".q.", ".qkv.")] = torch.cat(parts)
        elif not (key.startswith("cls_attn_blocks.") and (".attn.k." in key or ".attn.v." in key)):
            renamed[key.replace("pos_embed.", "pos_embeder.")] = value
    return renamed
