"""Formats of weight files: wrappers of training scripts, and key names (the authors', and timm's, which are ours)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import backbone_weights, better_weights, describe_lag, is_checkpoint
from ..errors import InputError, choose, warn
from ..preprocessing import Preprocessing

State = dict[str, Tensor]

# The keys under which a training script keeps its weights and their moving average: the authors' script, then timm's.
WRAPPERS = (("model", "model_ema"), ("state_dict", "state_dict_ema"))


@dataclass(frozen=True)
class Weights:
    """The weights in a file, with our key names, by kind: "raw", and "ema" if the file has a moving average."""

    origin: str
    kinds: dict[str, State]
    validated: Mapping[str, float] = field(default_factory=dict)
    """The headline metric of each kind in the run's last validation; empty for other files and older checkpoints."""
    headline: str = ""
    """The name of that metric."""
    input_values: Mapping[str, Any] = field(default_factory=dict)
    """What the file says of the model's preprocessing: values of `Preprocessing`; empty if it says nothing."""
    classes: list[str] | None = None
    """The names of the classes in the order of the outputs; None if the file has none."""
    task: Mapping[str, Any] | None = None
    """The task (`name`) and its options, if the keys are a whole task's: of a published detector or segmenter."""

    def state(self, kind: str | None = None) -> State:
        """The weights of one kind. Without `kind` it is `better()`, and a notice tells of the other one.

        A notice tells of a moving average that lags behind, unless the raw weights are asked for.
        """
        if kind != "raw":
            self.warn_of_lag()
        if kind is None:
            kind = self.better()
            if len(self.kinds) > 1:
                loaded, other = ("the moving average is", "raw") if kind == "ema" else ("the raw weights are", "ema")
                warn(
                    f"{self.origin}: has raw weights and their moving average; {loaded} loaded; "
                    f"kind={other!r} of load_weights takes the other one"
                )
        if kind not in self.kinds:
            raise InputError(f"weights={kind}: {self.origin} has only {' and '.join(self.kinds)} weights")
        return self.kinds[kind]

    def preprocessing(self, model: nn.Module) -> Preprocessing:
        """What a model with these weights expects of its images; what the file does not say comes from the model."""
        return replace(Preprocessing.of_model(model), **self.input_values)

    @property
    def in_chans(self) -> dict[str, int]:
        """The model's option for the channels of its images; empty for 3, since not every model has it."""
        channels = self.input_values.get("channels", 3)
        return {} if channels == 3 else {"in_chans": channels}

    def better(self) -> str:
        """The kind that did better in the run's last validation.

        If that is unknown, it is the moving average if there is one.
        """
        if self.validated.keys() >= self.kinds.keys():
            return better_weights(self.validated, self.headline)
        return "ema" if "ema" in self.kinds else "raw"

    def warn_of_lag(self) -> None:
        """Warn if the moving average was clearly worse than the raw weights in the run's last validation."""
        lag = describe_lag(self.validated, self.headline)
        if lag:
            warn(f"{self.origin}: {lag}")


def weights_in(content: Mapping[str, Any], origin: str, network: str | None = None) -> Weights:
    """The weights in the content of a file: a checkpoint of ours, a training script's, DINO's, or a bare state dict.

    Args:
        content: what the file holds.
        origin: the file's name, for messages.
        network: which network, if the file holds several: "teacher", which is the default, or "student".

    Raises:
        InputError: there is no state dict in the content, or no such network.
    """
    if is_checkpoint(content):
        return checkpoint_weights(content, backbone_weights(content, network), origin)
    if "teacher" in content:
        networks = {name: content[name] for name in ("teacher", "student") if name in content}
        chosen = choose(networks, network or "teacher", "network")
        return Weights(origin, {"raw": backbone_of_dino(state_dict(chosen, origin))})
    if network is not None:
        raise InputError(f"network={network}: {origin} holds one network")
    kinds = {"raw": content}
    for raw, ema in WRAPPERS:
        if isinstance(content.get(raw), Mapping):
            kinds = {"raw": content[raw]} | ({"ema": content[ema]} if content.get(ema) else {})
    return Weights(origin, {kind: to_timm_names(state_dict(state, origin)) for kind, state in kinds.items()})


def checkpoint_weights(content: Mapping[str, Any], kinds: dict[str, State], origin: str) -> Weights:
    """These kinds of weights in a checkpoint of ours, with all that it says of them."""
    identity = content["identity"]
    values = content.get("preprocessing")
    if values:
        preprocessing = Preprocessing.from_dict(values)
        values = {name: getattr(preprocessing, name) for name in values}
    elif "config" in identity:  # older checkpoints have none: it was the model's, at the size and crop ratio of the run
        size = identity["config"]["data"]["image_size"]
        values = {"size": (size, size), "crop_ratio": identity["config"].get("crop_ratio", 1.0)}
    return Weights(
        origin,
        kinds,
        content.get("validated", {}),
        content.get("headline", ""),
        values or {},
        list(identity["classes"]) if identity.get("classes") else None,
    )


def hub_weights(state: State, config: Mapping[str, Any], origin: str) -> Weights:
    """The weights in a folder of `save_pretrained`, with what its config.json says of them."""
    cfg = config.get("pretrained_cfg")
    values = Preprocessing.from_timm(cfg).as_dict() if cfg else {}
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Weights(origin, {"raw": state}, input_values=tuples, classes=config.get("label_names"))


def state_dict(state: object, origin: str) -> State:
    """The tensors by name, without the prefixes that DistributedDataParallel and torch.compile add."""
    if isinstance(state, Mapping) and state and all(names_tensor(*item) for item in state.items()):
        return {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in state.items()}
    raise InputError(f"{origin}: holds no state dict (tensors by name, bare or under 'model' or 'state_dict')")


def names_tensor(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor)


def backbone_of_dino(network: State) -> State:
    """The backbone of DINO's teacher or student, without its head. The published accuracies are the teacher's."""
    prefix = "backbone."
    return to_timm_names({k.removeprefix(prefix): v for k, v in network.items() if k.startswith(prefix)})


def to_timm_names(state: Mapping[str, Tensor]) -> State:
    """Rename the authors' keys to timm's; other keys stay.

    The authors call the position encoding `pos_embeder`, and their class attention has one `qkv` instead of `q`, `k`
    and `v`.
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
    """Rename timm's keys to the authors'; the inverse of `to_timm_names`."""
    renamed: State = {}
    for key, value in state.items():
        if key.startswith("cls_attn_blocks.") and ".attn.q." in key:
            parts = [state[key.replace(".q.", f".{name}.")] for name in "qkv"]
            renamed[key.replace(".q.", ".qkv.")] = torch.cat(parts)
        elif not (key.startswith("cls_attn_blocks.") and (".attn.k." in key or ".attn.v." in key)):
            renamed[key.replace("pos_embed.", "pos_embeder.")] = value
    return renamed
