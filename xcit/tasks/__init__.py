"""The tasks by name: a new one is a file in this room and a line here."""

from collections.abc import Callable

from torch import nn

from .classify import Classify

# name → class; what follows model and num_classes are the options that conf/task/NAME.yaml may set.
TASKS: dict[str, Callable[..., nn.Module]] = {
    "classify": Classify,
}
