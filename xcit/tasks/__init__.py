"""The tasks by name: a new one is a file in this room and a line here."""

from collections.abc import Callable

from ..engine.task import Task
from .classify import Classify
from .distill import Distill

# name → class; what follows model and num_classes are the options that conf/task/NAME.yaml may set.
TASKS: dict[str, Callable[..., Task]] = {
    "classify": Classify,
    "distill": Distill,
}
