"""XCiT, cross-covariance image transformers: the models, and what trains and evaluates them.

Importing the package needs torch alone; `xcit.tasks`, `xcit.engine`, `xcit.evaluation` and `xcit.config` need the
extra `train`.
"""

from .errors import InputError
from .models import create_model, list_models
from .models.weights import load_weights
from .models.xcit import XCiT

__all__ = ["InputError", "XCiT", "create_model", "list_models", "load_weights"]
__version__ = "0.1.0"
