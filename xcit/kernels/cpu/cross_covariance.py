"""Cross-covariance attention in C++ (cross_covariance.cpp): forward and backward, without copies of the heads."""

import torch
from torch import Tensor

from .library import TILE, call_dense, custom_op, is_dense


def fits(qkv: Tensor, temperature: Tensor, compiled: bool) -> bool:
    """Whether the kernels accept qkv, (B, N, 3C). Eager code needs at least one head for each thread."""
    heads = len(temperature)
    if qkv.shape[-1] % (3 * heads * TILE):
        return False
    return compiled or (is_dense(qkv) and is_dense(temperature) and len(qkv) * heads >= torch.get_num_threads())


def attend_forward_fake(qkv: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, N, channels = qkv.shape
    heads = len(temperature)
    d = channels // (3 * heads)
    inverse = qkv.new_empty(B, 2, heads, d, dtype=torch.float32)
    cosines, attention = (inverse.new_empty(B, heads, d, d) for _ in range(2))
    return qkv.new_empty(B, N, channels // 3), inverse, cosines, attention


@custom_op("xcit::attend_forward", attend_forward_fake)
def attend_forward(qkv: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `torch_forward` in ../cross_covariance.py."""
    B, N, channels = qkv.shape
    results = attend_forward_fake(qkv, temperature)
    call_dense("attend", qkv, temperature, *results, B, N, channels // 3, len(temperature))
    return results


def attend_backward_fake(
    grad: Tensor, qkv: Tensor, temperature: Tensor, inverse: Tensor, cosines: Tensor, attention: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format), torch.empty_like(temperature)


@custom_op("xcit::attend_backward", attend_backward_fake)
def attend_backward(
    grad: Tensor, qkv: Tensor, temperature: Tensor, inverse: Tensor, cosines: Tensor, attention: Tensor
) -> tuple[Tensor, Tensor]:
    """See `torch_backward` in ../cross_covariance.py."""
    B, N, channels = qkv.shape
    heads = len(temperature)
    grad_qkv, grad_temperature = qkv.new_empty(qkv.shape), qkv.new_empty(B, heads)
    saved = qkv, temperature, inverse, cosines, attention
    call_dense("attend_backward", *saved, grad, grad_qkv, grad_temperature, B, N, channels // 3, heads)
    return grad_qkv, grad_temperature.sum(0)[:, None, None]
