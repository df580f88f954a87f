"""Fast paths: functions of tokens that compute what the layers of xcit/models compute, in fewer passes.

Each stands for a few modules, says which, and keeps less for the backward pass than autograd would. The plain
form, in xcit/models, is the reference that each is tested against. Which of the two runs is decided in dispatch.py.
"""

from .batchnorm import batchnorm_gelu
from .class_attention import attend_class
from .covariance import attend_by_covariance, is_cheaper
from .cross_covariance import attend
from .depthwise import as_map
from .dispatch import BATCHNORMS, Kernels, chosen, forced, is_watched, kind, parts_of, possible, untouched
from .linear import gelu_linear, norm_linear, scaled_linear
from .local_patch import add_folded_local_patch, add_local_patch
from .matmul import by_onednn, convolution, packed, product
from .precision import compute_dtype
from .self_check import try_out

__all__ = [
    "BATCHNORMS",
    "Kernels",
    "add_folded_local_patch",
    "add_local_patch",
    "as_map",
    "attend",
    "attend_by_covariance",
    "attend_class",
    "batchnorm_gelu",
    "by_onednn",
    "chosen",
    "compute_dtype",
    "convolution",
    "forced",
    "gelu_linear",
    "is_cheaper",
    "is_watched",
    "kind",
    "norm_linear",
    "packed",
    "parts_of",
    "possible",
    "product",
    "scaled_linear",
    "try_out",
    "untouched",
]
