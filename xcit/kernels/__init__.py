"""Operations of the XCiT layers that are faster, or save less for the backward pass, than the layers' plain form.

Each file holds one operation. cpu/ and triton/ hold the implementations for CPUs and for NVIDIA GPUs, and dispatch.py
decides which of them runs. Each is tested against the plain form in xcit/models. docs/kernels.md lists every kernel
with its measured gain.
"""

from .batchnorm import batchnorm_gelu
from .class_attention import attend_class
from .covariance import attend_by_covariance, is_cheaper
from .cross_covariance import attend
from .dispatch import (
    BATCHNORMS,
    HOOKS,
    Kernels,
    allows_fast_operations,
    compiles_whole_model,
    compute_dtype,
    forced,
    forced_in_this_thread,
    forced_kernels,
    is_unmodified,
    may_fold,
    parts_of,
    runs_fast_form,
)
from .linear import gelu_linear, norm_linear, scaled_linear
from .local_patch import add_folded_local_patch, add_local_patch
from .matmul import by_onednn, convolution, pack_weight, product
from .self_check import check_triton_kernels

__all__ = [
    "BATCHNORMS",
    "HOOKS",
    "Kernels",
    "add_folded_local_patch",
    "add_local_patch",
    "allows_fast_operations",
    "attend",
    "attend_by_covariance",
    "attend_class",
    "batchnorm_gelu",
    "by_onednn",
    "check_triton_kernels",
    "compiles_whole_model",
    "compute_dtype",
    "convolution",
    "forced",
    "forced_in_this_thread",
    "forced_kernels",
    "gelu_linear",
    "is_cheaper",
    "is_unmodified",
    "may_fold",
    "norm_linear",
    "pack_weight",
    "parts_of",
    "product",
    "runs_fast_form",
    "scaled_linear",
]
