"""Evaluation: what a checkpoint is worth, across resolutions, its cost in time and memory, and the report.

A new way to evaluate frozen features is a file in this room and a line in EVALUATIONS.
"""

from collections.abc import Callable
from typing import Any

from .knn import KNN
from .linear_probe import LinearProbe
from .retrieval import Retrieval


def own_evaluator() -> None:
    """The task's own evaluator, for classification top-1, top-5 and loss. The other entries take only its backbone."""
    return


# name → what makes an OfFeatures, but for "task"; its keyword-only arguments are the options in conf/evaluate/.
EVALUATIONS: dict[str, Callable[..., Any]] = {
    "task": own_evaluator,
    "knn": KNN,
    "linear": LinearProbe,
    "retrieval": Retrieval,
}
