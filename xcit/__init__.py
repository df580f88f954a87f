"""XCiT, cross-covariance image transformers: the models, and what trains and evaluates them.

Importing the package needs torch, safetensors, huggingface_hub and xxhash alone; `xcit.tasks`, `xcit.engine`,
`xcit.evaluation` and `xcit.config` need the extra `train`.
"""

from .errors import InputError, Notice
from .models import create_model, list_models
from .models.fast.inference import fuse_for_inference
from .models.load import Loaded, load
from .models.xcit import XCiT
from .weights.loading import load_weights
from .weights.published import list_pretrained

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
