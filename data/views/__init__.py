"""The table of views. A view defines what a task sees of an example. A new view is a file here and a line below."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..examples import View
from . import detection, labelled_crop, multi_crop, segmentation


class Views(NamedTuple):
    """The two functions that build a view, one for training and one for evaluation."""

    training: Callable[..., View]
    """Takes (preprocessing, classes, decode). Its keyword-only arguments are the options of conf/augment."""
    evaluation: Callable[..., View]
    """Takes (preprocessing, classes). The preprocessing defines the resolution."""
    sizes: Callable[[Mapping[str, Any]], Mapping[str, Sequence[int]]] = lambda options: {}
    """Key → image sizes in pixels that the model must take besides the training size, from the options."""


# Each task names the view that it learns from.
VIEWS: dict[str, Views] = {
    "labelled_crop": Views(labelled_crop.training_view, labelled_crop.evaluation_view),
    "multi_crop": Views(multi_crop.training_view, multi_crop.evaluation_view, multi_crop.further_sizes),
    "detection": Views(detection.training_view, detection.evaluation_view),
    "segmentation": Views(segmentation.training_view, segmentation.evaluation_view),
}
