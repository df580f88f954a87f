"""What a file of weights holds: the weights of a run's task and of its model, and the configuration of the run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .checkpoint import backbone_weights, is_checkpoint, task_weights, upgraded
from .config import TrainConfig
from .config.composition import Tables, read_config, section_for
from .config.sections import ModelConfig
from .errors import InputError
from .models import MODELS
from .models.variants import named
from .storage import read_tensors
from .weights.dense import is_dense, whole_task
from .weights.formats import Weights, checkpoint_weights
from .weights.loading import weights_at
from .weights.published import find_published
from .weights.sources import HUB_PREFIX, read_hub_config

# In a hub folder's config.json, but no settings.
NOT_OPTIONS = ("num_classes", "in_chans", "global_pool", "pretrained_cfg", "label_names")


@dataclass(frozen=True)
class Saved:
    """What a file of weights holds."""

    weights: Weights
    """Of the task in a run's checkpoint and in a published detector or segmenter, otherwise of the model alone."""
    backbone: Weights
    """Of the task's backbone alone: the model."""
    config: TrainConfig | None = None
    """Of the run that wrote it; None for a file of weights."""
    order: Mapping[str, Any] = field(default_factory=dict)
    """What decided which images the run was trained on."""

    def of_task(self, backbone: str, kind: str) -> dict[str, Any]:
        """The state dict of the task. backbone: the task's."""
        prefix = "" if self.config or self.weights.task else f"{backbone}."
        return {f"{prefix}{key}": value for key, value in self.weights.state(kind).items()}


def read_checkpoint(path: Path, tables: Tables) -> Saved:
    """What the file at `path` holds. tables: of the entries of the open groups; see `make_tables`."""
    content = read_tensors(path)
    if not is_checkpoint(content):
        backbone = weights_at(path, content)
        return Saved(whole_task(content, str(path)) if is_dense(content) else backbone, backbone)
    content = upgraded(content, str(path))
    weights, backbone = (
        checkpoint_weights(content, kinds, str(path)) for kinds in (task_weights(content), backbone_weights(content))
    )
    config = read_config(TrainConfig, content["identity"]["config"], tables)
    return Saved(weights, backbone, config, content["identity"].get("order", {}))


def is_published(checkpoint: str) -> bool:
    """Whether it names weights without a run's configuration, and no file or folder."""
    named = checkpoint.startswith(("timm/", HUB_PREFIX)) or find_published(checkpoint)
    return bool(named) and not Path(checkpoint).exists()


def not_given(group: str, checkpoint: str) -> InputError:
    return InputError(f"{group}: must be given, because {checkpoint} does not say which one in conf/{group}")


def model_of(checkpoint: str, path: Path) -> ModelConfig | None:
    """The model that published weights are for, or that the config.json beside a hub folder's weights describes."""
    published, hub_config = find_published(checkpoint), read_hub_config(path)
    plain: dict[str, Any] | None = None
    if published:
        plain = published.options
    elif checkpoint.startswith("timm/"):
        plain = {"library": "timm", "name": checkpoint.removeprefix("timm/")}
    elif hub_config:
        plain = named(hub_config)
    if plain is None:
        return None
    options = {key: value for key, value in plain.items() if key not in NOT_OPTIONS}
    return section_for("model", options, MODELS).model_validate(options)
