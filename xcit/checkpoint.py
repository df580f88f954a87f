"""The checkpoint format, and functions that extract weights from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

FORMAT = "xcit training state, version 3"
FORMAT_2 = "xcit training state, version 2"
"""Of older runs; `read_state` upgrades it."""
LAST = Path("checkpoints", "last.pt")
"""The checkpoint in a run folder from which the run continues; the folder's path stands for it."""


def is_checkpoint(content: Mapping[str, Any]) -> bool:
    """Whether it is a checkpoint of one of our runs, of any version: its weights can be read."""
    return str(content.get("format")).startswith(FORMAT.partition(",")[0])


def task_weights(content: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The weights of the task: "raw", as trained, and "ema", their moving average, if the run kept one."""
    return {"raw": content["task"]} | ({"ema": content["ema"]} if content["ema"] else {})


def backbone_weights(content: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The weights of the task's backbone alone, by the model's own names: what others load."""
    prefix = f"{content.get('backbone', 'model')}."
    return {
        kind: {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        for kind, weights in task_weights(content).items()
    }
