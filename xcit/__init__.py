"""XCiT, cross-covariance image transformers: the models, and what trains and evaluates them.

Importing the package needs torch, safetensors, huggingface_hub and xxhash alone; `xcit.tasks`, `xcit.engine`,
`xcit.evaluation` and `xcit.config` need the extra `train`.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .errors import InputError, Notice

if TYPE_CHECKING:
    from .models import create_model, list_models
    from .models.fast.inference import fuse_for_inference
    from .models.load import Loaded, load
    from .models.xcit import XCiT
    from .prediction.classifier import Classifier as Classifier
    from .prediction.dense import Detector as Detector
    from .prediction.dense import Segmenter as Segmenter
    from .weights.loading import load_weights
    from .weights.published import list_pretrained

# Without Classifier, Detector and Segmenter, since `from xcit import *` must not need numpy, Pillow and torchvision.
__all__ = [
    "InputError",
    "Loaded",
    "Notice",
    "XCiT",
    "create_model",
    "fuse_for_inference",
    "list_models",
    "list_pretrained",
    "load",
    "load_weights",
]
__version__ = "0.1.0"

# name → its module. They are imported when they are used, so that a command can answer before torch is loaded.
HOMES = {
    "Classifier": "prediction.classifier",
    "Detector": "prediction.dense",
    "Loaded": "models.load",
    "Segmenter": "prediction.dense",
    "XCiT": "models.xcit",
    "create_model": "models",
    "fuse_for_inference": "models.fast.inference",
    "list_models": "models",
    "list_pretrained": "weights.published",
    "load": "models.load",
    "load_weights": "weights.loading",
}


def __getattr__(name: str) -> Any:
    """Import a function, a class or a submodule of this package when it is used for the first time."""
    if name in HOMES:
        try:
            return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith(__name__):
                raise
            needed = f"needs {error.name}, which is not installed; pip install 'xcit[train]' installs all"
            raise InputError(f"{__name__}.{name}: {needed}") from None
    if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *HOMES, "__version__"})
