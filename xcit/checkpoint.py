"""What a checkpoint of a run looks like, for those who write one and for those who only want its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

FORMAT = "xcit training state, version 2"
LAST = Path("checkpoints", "last.pt")
"""Where a run folder keeps the checkpoint that it goes on from, and that is meant where the folder is given."""
MODEL = "model."
"""What the names of a task's weights begin with where they are the model's."""


def is_checkpoint(content: Mapping[str, Any]) -> bool:
    """Whether it is one of ours, of any version: its weights can be read."""
    return str(content.get("format")).startswith(FORMAT.partition(",")[0])


def task_weights(content: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The weights of the task: "raw", as trained, and "ema", their moving average, where the run kept one."""
    return {"raw": content["task"]} | ({"ema": content["ema"]} if content["ema"] else {})


def model_weights(content: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The same of the model alone, by the model's own names."""
    return {
        kind: {key.removeprefix(MODEL): value for key, value in weights.items() if key.startswith(MODEL)}
        for kind, weights in task_weights(content).items()
    }
