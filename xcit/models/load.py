"""Load a trained model in one line: the model, its preprocessing and the names of its classes."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ..checkpoint import is_checkpoint, upgraded
from ..errors import InputError, warn
from ..imagenet_names import IMAGENET
from ..preprocessing import Preprocessing
from ..storage import load_exactly, read_tensors
from ..weights.formats import State, Weights
from ..weights.loading import describe, head_prefixes, weights_at, with_pruned_parts_of
from ..weights.published import find_published
from ..weights.sources import locate, read_hub_config
from . import create_model
from .variants import VARIANTS
from .xcit import XCiT


class Loaded(NamedTuple):
    """What `load` returns."""

    model: nn.Module
    """In evaluation mode, on the CPU."""
    preprocessing: Preprocessing
    """Call it with a list of pictures; the result is the model's input."""
    classes: list[str] | None
    """The names of the classes in the order of the outputs; None if they are unknown."""


def load(source: str | Path, kind: str | None = None) -> Loaded:
    """Load a trained model with its classifier, its preprocessing and its class names.

    Args:
        source: a run folder (its last checkpoint), a checkpoint in one, a folder that `save_pretrained` wrote,
            hf-hub:OWNER/NAME, or a name of `list_pretrained()`. A run with model=timm needs timm.
        kind: "raw" or "ema". The default is the better one in the last validation of the run.

    Of a detector or segmenter it is the backbone, without a classifier. What detection and segmentation do not train
    stays newly initialized, and a `Notice` says so; `xcit.tasks.load.load_task` loads the whole task.

    Published weights have the names of ImageNet's classes.

    Raises:
        InputError: the source cannot be found or read, or does not say which model its weights are for.
    """
    path = locate(str(source))
    return load_content(str(source), path, read_tensors(path), kind)


def load_content(source: str, path: Path, content: Mapping[str, Any], kind: str | None) -> Loaded:
    """See `load`. content: what the file at `path` holds."""
    weights = weights_at(path, content)
    if kind is None:
        weights.warn_of_lag()
    state = weights.state(kind or weights.better())
    model = new_model(source, path, content, weights, state)
    state, notice = with_pruned_parts_of(model, state, weights.origin)
    if notice:
        warn(notice)
    load_exactly(model, state, weights.origin)
    describe(model, weights)
    classes = weights.classes if getattr(model, "num_classes", 1) else None
    if classes is None and find_published(source) and getattr(model, "num_classes", 0) == 1000:
        classes = list(IMAGENET)
    return Loaded(model.eval(), weights.preprocessing(model), classes)


def class_names(loaded: Loaded, source: str | Path) -> list[str]:
    """The names of the model's classes; the numbers of those without known names.

    Raises:
        InputError: the model has no classifier.
    """
    num_classes = getattr(loaded.model, "num_classes", 0)
    if not num_classes:
        raise InputError(f"{source}: is a backbone without a classifier, so it predicts no classes")
    return loaded.classes or [str(number) for number in range(num_classes)]


def new_model(source: str, path: Path, content: Mapping[str, Any], weights: Weights, state: State) -> nn.Module:
    """The model that these weights are for, with its initial weights."""
    published, hub_config = find_published(source), read_hub_config(path)
    if hub_config:
        accepted = inspect.signature(XCiT).parameters
        return XCiT(**{key: value for key, value in hub_config.items() if key in accepted})
    if is_checkpoint(content):
        options = upgraded(content, source)["identity"]["config"]["model"]
    elif published:
        options = published.options
    else:
        raise InputError(
            f"{source}: does not say which model its weights are for; create_model(NAME, pretrained=…) does"
        )
    if options["name"] in VARIANTS:
        head = state.get("head.weight")
        return build({**options, **weights.in_chans}, num_classes=0 if head is None else len(head))
    model = build({**options, **weights.in_chans}, num_classes=len(weights.classes or ()))
    if not any(key.startswith(head_prefixes(model)) for key in state):
        model.reset_classifier(0)  # type: ignore[operator]
    return model


def build(options: Mapping[str, Any], num_classes: int) -> nn.Module:
    """The model of a run. options: the run's section `model`, and in_chans."""
    options = {key: value for key, value in options.items() if (key, value) != ("heads", None)}  # the variant's number
    library = options.pop("library", "xcit")
    name = "timm" if library == "timm" else options.pop("name")
    return create_model(name, num_classes=num_classes, **options)
