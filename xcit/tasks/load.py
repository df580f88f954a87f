"""Load a trained task in one line: the task, its preprocessing and the names of its classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoint import is_checkpoint, task_weights, upgraded
from ..engine.task import Target, Task
from ..errors import InputError, choose
from ..models.fast.inference import ready_for_inference
from ..models.load import build, class_names, load_content
from ..preprocessing import Preprocessing
from ..storage import load_exactly, read_tensors
from ..weights.dense import is_dense, whole_task
from ..weights.formats import Weights, checkpoint_weights
from ..weights.published import find_published
from ..weights.sources import locate
from . import BARE_WEIGHTS, TASKS


class LoadedTask(NamedTuple):
    """What `load_task` returns."""

    task: Task
    """In evaluation mode, on the CPU, with its backbone folded for inference."""
    preprocessing: Preprocessing
    """From a picture to the model's input, at the size of the training."""
    classes: list[str]
    """The names of the classes by number."""
    name: str
    """Of the task, such as "detect"."""


@dataclass(frozen=True)
class Description:
    """What the weights in a file are for."""

    task: str
    options: Mapping[str, Any]
    """Of the task. Those that are missing, as in an older checkpoint, have their defaults."""
    model: Mapping[str, Any]
    """The options of the model, as in conf/model/."""
    classes: Sequence[str]
    weights: Weights
    """Of the whole task."""


def load_task(source: str | Path, kind: str | None = None) -> LoadedTask:
    """Load a trained task with its preprocessing and its class names.

    Args:
        source: a run folder (its last checkpoint), a checkpoint in one, or what `xcit.load` takes besides: a folder of
            `save_pretrained`, hf-hub:OWNER/NAME, a name of `list_pretrained()`. The latter hold a classifier. Also the
            name of a published detector or segmenter, or a file of this name.
        kind: "raw" or "ema". The default is the better one in the last validation of the run.

    Classes without known names are called by their numbers.

    Raises:
        InputError: the source cannot be found or read, or does not say what its weights are for.
    """
    path = locate(str(source))
    content = read_tensors(path)
    described = describe(content, str(source), str(path))
    if described is None:
        return load_classifier(str(source), path, content, kind)
    task_class = choose(TASKS, described.task, "task")
    target = Target(task_class.target_kinds[0], tuple(described.classes))
    model = build({**described.model, **described.weights.in_chans}, task_class.num_outputs(target))
    task = task_class(model, target, **described.options)
    weights = described.weights
    if kind is None:
        weights.warn_of_lag()
    load_exactly(task, weights.state(kind or weights.better()), weights.origin)
    preprocessing = replace(task.preprocessing(Preprocessing.of_model(model)), **weights.input_values)
    return LoadedTask(ready(task), preprocessing, list(target.classes), described.task)


def describe(content: Mapping[str, Any], source: str, origin: str) -> Description | None:
    """What the content of a file says of the task that its weights are for; None if it holds a model alone.

    Args:
        source: what was given to `load_task`.
        origin: the file's path, for messages.
    """
    if is_checkpoint(content):
        content = upgraded(content, origin)
        config = content["identity"]["config"]
        options = dict(config["task"])
        return Description(
            task=options.pop("name"),
            options=options,
            model=config["model"],
            classes=content["identity"]["classes"] or (),
            weights=checkpoint_weights(content, task_weights(content), origin),
        )
    if is_dense(content):  # the authors' detectors and segmenters, whose file names say which model they have
        weights, published = whole_task(content, origin), find_published(source)
        if published is None:
            raise InputError(
                f"{source}: does not say which model its weights are for; give the file its published name"
            )
        options = dict(weights.task or {})
        classes = weights.classes or ()
        return Description(options.pop("name"), options, published.options, classes, weights)
    return None


def load_classifier(source: str, path: Path, content: Mapping[str, Any], kind: str | None) -> LoadedTask:
    """The task of weights of a model alone."""
    loaded = load_content(source, path, content, kind)
    classes = class_names(loaded, source)
    task = TASKS[BARE_WEIGHTS](loaded.model, Target("class", tuple(classes)))
    return LoadedTask(ready(task), loaded.preprocessing, classes, BARE_WEIGHTS)


def ready(task: Task) -> Task:
    """The task in evaluation mode, with its backbone folded for inference, in place."""
    task.set_submodule(task.backbone, ready_for_inference(task.get_submodule(task.backbone)))
    return task.eval()
