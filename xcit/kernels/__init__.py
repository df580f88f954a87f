"""Fast paths: functions of tokens that compute what the layers of xcit/models compute, in fewer passes.

Each stands for a few modules, says which, and keeps less for the backward pass than autograd would. The plain
form, in xcit/models, is the reference that each is tested against. Which of the two runs is decided in dispatch.py.
"""

from .batchnorm import batchnorm_gelu
from .class_attention import attend_class
from .cross_covariance import attend
from .dispatch import Kernels, chosen, forced
from .linear import gelu_linear, norm_linear, scaled_linear
from .local_patch import add_local_patch

__all__ = [
    "Kernels",
    "add_local_patch",
    "attend",
    "attend_class",
    "batchnorm_gelu",
    "chosen",
    "forced",
    "gelu_linear",
    "norm_linear",
    "scaled_linear",
]
