"""The tasks by name: a new one is a file in this room and a line here."""

from ..engine.task import Task
from .classify import Classify
from .detect import Detect
from .dino import Dino
from .distill import Distill
from .multilabel import Multilabel
from .regress import Regress
from .segment import Segment

# name → class; its keyword-only arguments are the options that conf/task/NAME.yaml may set.
TASKS: dict[str, type[Task]] = {
    "classify": Classify,
    "detect": Detect,
    "dino": Dino,
    "distill": Distill,
    "multilabel": Multilabel,
    "regress": Regress,
    "segment": Segment,
}
BARE_WEIGHTS = "classify"
"""The task as which eval.py evaluates a file that holds only a model's weights, unless task= names another."""
