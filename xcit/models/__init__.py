"""The models by name. A new model is a file in this folder and a line in MODELS."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError, unknown, warn
from ..preprocessing import pretrained_cfg
from ..weights.loading import load_weights
from ..weights.published import PUBLISHED
from .features import FeatureMaps, default_taps
from .options import check_how, check_names, height_and_width
from .timm_arguments import find_by_full_name, in_our_terms
from .timm_models import timm_model
from .variants import VARIANTS
from .xcit import XCiT

# name → function that builds the model. Its keyword arguments are the options that conf/model/NAME.yaml may set.
MODELS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(XCiT, **variant) for name, variant in VARIANTS.items()},
    "timm": timm_model,
}


def create_model(
    name: str,
    /,
    pretrained: str | bool | None = None,
    *,
    num_classes: int = 1000,
    checkpoint_path: str | Path | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.Module:
    """Build a model, with random or with published weights.

    Args:
        name: one of `list_models()`, or the name of published weights of such a model, ours (xcit_s12_p16.fb_in1k) or
            timm's (xcit_small_12_p16_224.fb_in1k), with or without the tag, or "timm" with the option `name` for any
            model of timm.
        num_classes: outputs of the classifier; 0 for no classifier.
        pretrained: the weights to start from: the tag of published weights ("fb_in1k", "fb_dist_in1k",
            "fb_dist_in1k_384", "fb_dino"), or anything that `load_weights` takes. True means the weights that the
            name names, "fb_in1k" if it has no tag, and timm's default weights for models of timm.
        checkpoint_path: another name of `pretrained`, for a file.
        features_only: return a `FeatureMaps`, whose output is the list of feature maps after the layers `out_indices`.
            The default is the four layers that detection and segmentation use; an int n means the last n layers. For
            XCiT only.
        device, dtype: of the parameters.
        options: options of the model; for XCiT `patch_size` (16), `drop_path_rate` (0.0), `in_chans` (3),
            `patch_embed` ("conv") and the other arguments of `XCiT`, also under timm's names. None means the default.

    Raises:
        InputError: the name or an option is unknown, an option is out of range, or the weights are another model's.
    """
    check_how(name, pretrained, checkpoint_path, device, dtype)
    if out_indices is not None and not features_only:
        raise InputError(f"out_indices={out_indices}: needs features_only=True")
    options = {key: value for key, value in options.items() if value is not None}
    # Names of published weights, and timm's names of arguments.
    entry = find_by_full_name(name)
    if entry:
        name, options = entry.model, {"patch_size": entry.patch_size} | options
        pretrained = entry.name if pretrained is True else pretrained
    if name not in MODELS:
        raise InputError(unknown(name, "model", PUBLISHED if "." in name else MODELS))
    build = MODELS[name]
    if name != "timm":
        options = in_our_terms(options)
    if entry:
        options = {"image_size": entry.input_size} | options
    check_names(build, options, f"model={name}")
    # The model, its weights, and what of it is wanted.
    with torch.device(device) if device is not None else nullcontext():
        model = new_model(name, num_classes, checkpoint_path or pretrained, options)
    model = model if dtype is None else model.to(dtype)
    return feature_maps(model, name, out_indices) if features_only else model


def new_model(name: str, num_classes: int, pretrained: str | Path | bool | None, options: dict[str, Any]) -> nn.Module:
    """See `create_model`."""
    build = MODELS[name]
    if pretrained is True and name == "timm":
        model = build(num_classes=num_classes, pretrained=True, **options)
        trained = pretrained_cfg(model)["num_classes"]
        if trained != num_classes:
            left_out = f"timm's classifier of {trained} classes is not loaded"
            new = f"the model's classifier of {num_classes} classes stays newly initialized"
            warn(f"{left_out}; {new}")
        return model
    source = "fb_in1k" if pretrained is True else pretrained or None
    published = PUBLISHED.get(f"{name}_p{options.get('patch_size', 16)}.{source}")
    if published:
        options, source = {"image_size": published.input_size} | options, published.name
    elif source in {entry.tag for entry in PUBLISHED.values()} and not Path(source).exists():
        raise InputError(f"{source}: {no_such_weights(name, str(source), options)}")
    model = build(num_classes=num_classes, **options)
    if source:
        load_weights(model, source)
        if isinstance(model, XCiT) and options.get("image_size"):  # it counts, not that of the weights' run
            size = height_and_width(options["image_size"])
            model.pretrained_cfg["input_size"] = (model.pretrained_cfg["input_size"][0], *size)
    return model


def feature_maps(model: nn.Module, name: str, out_indices: int | Sequence[int] | None) -> FeatureMaps:
    """The model as one that returns feature maps."""
    if not isinstance(model, XCiT):
        raise InputError(f"features_only=True: is for XCiT; timm.create_model gives that of {name}")
    return FeatureMaps(model, default_taps(len(model.blocks)) if out_indices is None else out_indices)


def no_such_weights(name: str, tag: str, options: Mapping[str, Any]) -> str:
    """Why the published weights with this tag are not for this model, and what is for it."""
    if name == "timm":
        return "names weights of an XCiT; true takes timm's own weights of this model"
    entries = [entry for entry in PUBLISHED.values() if entry.model == name]
    if not entries:
        return f"no weights are published for {name}"
    tags = {entry.patch_size: [e.tag for e in entries if e.patch_size == entry.patch_size] for entry in entries}
    accepted = "; ".join(f"{', '.join(found)} at patch_size={size}" for size, found in sorted(tags.items()))
    return f"not published for {name} at patch_size={options.get('patch_size', 16)} (published: {accepted})"


def list_models(filter: str | Iterable[str] = "") -> list[str]:  # noqa: A002, it is timm's name
    """The names of the models that `create_model` builds, besides "timm".

    filter: the names must match this pattern, or one of these patterns; `*` stands for any characters.
    """
    patterns = [filter or "*"] if isinstance(filter, str) else list(filter)
    return [name for name in MODELS if name != "timm" and any(fnmatchcase(name, pattern) for pattern in patterns)]
