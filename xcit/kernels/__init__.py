"""Operations of the XCiT layers that are faster, or save less for the backward pass, than the layers' plain form.

One file an operation. cpu/ and triton/ hold the implementations for CPUs and for NVIDIA GPUs, dispatch.py decides which
of them runs. The plain form, in xcit/models, is the reference that each is tested against. docs/kernels.md lists every
kernel with the gain that was measured for it.
"""

from .batchnorm import batchnorm_gelu
from .class_attention import attend_class
from .covariance import attend_by_covariance, is_cheaper
from .cross_covariance import attend
from .depthwise import as_map
from .dispatch import (
    BATCHNORMS,
    HOOKS,
    Kernels,
    chosen,
    compute_dtype,
    forced,
    is_compiling,
    is_observed,
    is_watched,
    kind,
    may_fold,
    parts_of,
    possible,
    untouched,
)
from .linear import gelu_linear, norm_linear, scaled_linear
from .local_patch import add_folded_local_patch, add_local_patch
from .matmul import by_onednn, convolution, pack_weight, product
from .self_check import try_out

__all__ = [
    "BATCHNORMS",
    "HOOKS",
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
    "is_compiling",
    "is_observed",
    "is_watched",
    "kind",
    "may_fold",
    "norm_linear",
    "pack_weight",
    "parts_of",
    "possible",
    "product",
    "scaled_linear",
    "try_out",
    "untouched",
]
