"""Load weights from a file, a run folder or a published name into a model."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import warn
from ..preprocessing import Preprocessing, pretrained_cfg
from ..storage import load_exactly, read_tensors
from .dense import backbone_alone, is_dense
from .formats import State, Weights, hub_weights, weights_in
from .sources import locate, read_hub_config


def load_weights(model: nn.Module, source: str | Path | Mapping[str, Any], kind: str | None = None) -> None:
    """Load weights into a model, in place.

    The model's `pretrained_cfg` then says what the weights were trained with: the input size, mean, standard deviation
    and the names of the classes, as far as the file says them.

    If the weights are for another number of classes, or have no classifier, the model keeps its classifier and a
    `Notice` says so. The backbone of a detector or segmenter also lacks the class attention and the final norm; the
    model keeps its own, and a `Notice` says so. Weights for RGB images also load into a model for another number of
    channels: the first convolution's weights are summed or repeated, and a `Notice` says so.

    Args:
        model: the model to load into.
        source: anything that `locate` finds (a file, a run folder, the name of published weights), or the content of
            such a file. Key names may be timm's or the authors'. Files are torch's or safetensors. Pickle files that
            contain code raise an InputError.
        kind: "raw" or "ema". The default is the better one in the last validation of the run. If the file does not say,
            it is the moving average if there is one.

    Raises:
        InputError: the source cannot be found or read, or its keys or shapes differ from the model's (the message lists
            them). The model is unchanged then.
    """
    weights = read_weights(source)
    state, head_notice = with_head_of(model, weights.state(kind), weights.origin)
    state, pruned_notice = with_pruned_parts_of(model, state, weights.origin)
    state, channels_notice = for_channels_of(model, state, weights.origin)
    load_exactly(model, state, weights.origin)
    describe(model, weights, with_classes=head_notice is None)
    for notice in (head_notice, pruned_notice, channels_notice):
        if notice:
            warn(notice)


def read_weights(source: str | Path | Mapping[str, Any]) -> Weights:
    """Read the weights in a file, or in the content of one. Key names become timm's."""
    if isinstance(source, Mapping):
        return weights_of(source, "the state dict")
    path = locate(str(source))
    return weights_at(path, read_tensors(path))


def weights_at(path: Path, content: Mapping[str, Any], network: str | None = None) -> Weights:
    """The weights in the content of the file at `path`, and what the config.json beside a hub folder's file says.

    network: see `weights_in`.
    """
    weights = weights_of(content, str(path), network)
    config = read_hub_config(path)
    return hub_weights(weights.state("raw"), config, weights.origin) if config else weights


def weights_of(content: Mapping[str, Any], origin: str, network: str | None = None) -> Weights:
    """See `weights_in`; of a published detector or segmenter the weights of its backbone."""
    if network is None and is_dense(content):
        return backbone_alone(content, origin)
    return weights_in(content, origin, network)


def describe(model: nn.Module, weights: Weights, *, with_classes: bool = True) -> None:
    """Make the model's `pretrained_cfg` say what is known of the weights that it has just loaded."""
    if weights.input_values:
        found, own = weights.preprocessing(model), Preprocessing.of_model(model)
        if found.resize == "shortest":  # of detection or segmentation, which set it themselves
            found = replace(found, resize=own.resize, size=own.size)
        if found.channels != own.channels:  # see for_channels_of
            found = Preprocessing.from_timm(found.as_timm() | {"input_size": (own.channels, *found.size)})
        describe_input(model, found, weights.classes if with_classes else None)


def with_head_of(model: nn.Module, state: State, origin: str) -> tuple[State, str | None]:
    """The state, with the model's classifier if the numbers of classes differ; and a notice about that, or None."""
    own = model.state_dict()
    head = head_prefixes(model)
    here = {key: value for key, value in own.items() if key.startswith(head)}
    there = {key: value for key, value in state.items() if key.startswith(head)}
    if here.keys() == there.keys() and all(here[key].shape[:1] == there[key].shape[:1] for key in here):
        return state, None
    if here and there and here.keys() != there.keys():
        return state, None  # a classifier with other keys is an error, which `load_exactly` reports
    rest = {key: value for key, value in state.items() if key not in there}
    if not here:
        notice = f"its classifier of {num_outputs(there)} classes is not loaded; the model has none"
    elif not there:
        notice = f"has no classifier; the model's classifier of {num_outputs(here)} classes stays newly initialized"
    else:
        notice = (
            f"its classifier of {num_outputs(there)} classes is not loaded; "
            f"the model's classifier of {num_outputs(here)} classes stays newly initialized"
        )
    return rest | here, f"{origin}: {notice}"


def with_pruned_parts_of(model: nn.Module, state: State, origin: str) -> tuple[State, str | None]:
    """The state, with the model's own parts after the layers if it lacks exactly these; and a notice, or None.

    These are the parts that the feature pyramid of detection and segmentation prunes, so weights from there lack them.
    """
    own = model.state_dict()
    missing = own.keys() - state.keys()
    if not missing or not hasattr(model, "prune_intermediate_layers"):
        return state, None
    pruned: Any = copy.deepcopy(model)
    pruned.prune_intermediate_layers(1, prune_norm=True, prune_head=True)
    if missing != {key for key in own.keys() - pruned.state_dict().keys() if not key.startswith(head_prefixes(model))}:
        return state, None
    parts = ", ".join(sorted({key.partition(".")[0] for key in missing}))
    notice = (
        f"{origin}: has no {parts}, which detection and segmentation do not use; the model's stay newly initialized"
    )
    return state | {key: own[key] for key in missing}, notice


def for_channels_of(model: nn.Module, state: State, origin: str) -> tuple[State, str | None]:
    """The state, with the first convolution of RGB weights for the model's channels; and a notice about that, or None.

    As in timm, one channel gets the sum over the three; more channels get them in turn, scaled so that the sum over all
    stays the same.
    """
    key = f"{pretrained_cfg(model).get('first_conv')}.weight"
    here, there = model.state_dict().get(key), state.get(key)
    if here is None or there is None or here.ndim != 4 or there.ndim != 4:
        return state, None
    channels = here.shape[1]
    if there.shape[1] != 3 or channels == 3:
        return state, None
    notice = f"its first convolution is for 3 channels; the model's is for {channels}, and gets weights made from them"
    return state | {key: spread_channels(there, channels)}, f"{origin}: {notice}"


def spread_channels(weight: Tensor, channels: int) -> Tensor:
    """The weight of a convolution, (O, 3, H, W) → (O, channels, H, W)."""
    if channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, -(-channels // 3), 1, 1)[:, :channels]
    return (repeated * (3 / channels)).to(weight.dtype)


def without_head(model: nn.Module, state: State) -> State:
    """The state without the weights of the model's classifier."""
    head = head_prefixes(model)
    return {key: value for key, value in state.items() if not key.startswith(head)}


def head_prefixes(model: nn.Module) -> tuple[str, ...]:
    """The prefixes of the classifier's keys. timm's distilled models have two classifiers."""
    configured = pretrained_cfg(model).get("classifier") or "head"
    return tuple(f"{name}." for name in ([configured] if isinstance(configured, str) else configured))


def num_outputs(head: State) -> int:
    return next(iter(head.values())).shape[0]


def describe_input(model: nn.Module, preprocessing: Preprocessing, classes: Sequence[str] | None) -> None:
    """Make the model's `pretrained_cfg` say what the model expects of its images, and the names of its classes.

    classes: the names in the order of the outputs; None if they are unknown.
    """
    cfg = {key: value for key, value in pretrained_cfg(model).items() if not key.startswith("label_")}
    cfg |= preprocessing.as_timm()
    if classes is not None:
        cfg |= {"num_classes": len(classes), "label_names": list(classes)}
    model.pretrained_cfg = model.default_cfg = cfg  # type: ignore[assignment]
