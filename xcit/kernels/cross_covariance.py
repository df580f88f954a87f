"""Cross-covariance attention of queries, keys and values: the L2 norms scale the d × d scores, not the tokens."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .cpu.cross_covariance import attend_backward as cpu_backward
from .cpu.cross_covariance import attend_forward as cpu_forward
from .cpu.cross_covariance import fits as fits_cpu
from .dispatch import Backend, backend_for, overflows, without_autocast

WIDEST_IN_TRITON = 128
"""Channels of a head. Wider heads do not fit into a GPU's registers."""


def attend(qkv: Tensor, temperature: Tensor) -> Tensor:
    """V · softmax(K̂ᵀ Q̂ / τ) of every head: (B, N, 3C), (heads, 1, 1) → (B, N, C). Saves qkv and d × d matrices.

    In fp16 the sums over the tokens would overflow, so it computes in fp32.
    """
    if overflows(qkv):
        with without_autocast(qkv):
            return attend(qkv.float(), temperature.float()).to(qkv.dtype)
    if not torch.is_grad_enabled():
        return attend_forward(qkv, temperature, backend_for("attend", qkv, temperature, fits=fits))[0]
    return Attend.apply(qkv, temperature)


class Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, temperature: Tensor) -> Tensor:
        ctx.backend = backend_for("attend", qkv, temperature, fits=fits)
        attended, *saved = attend_forward(qkv, temperature, ctx.backend)
        ctx.save_for_backward(qkv, temperature, *saved)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        saved = ctx.saved_tensors
        if ctx.backend == "triton":
            from .triton.cross_covariance import attend_backward as triton_backward

            return triton_backward(grad, *saved)
        # Check again: a FLOP counter may count the backward pass alone.
        on_cpu = ctx.backend == "cpu" and backend_for("attend", *saved[:2], fits=fits) == "cpu"
        return (cpu_backward if on_cpu else torch_backward)(grad, *saved)


def fits(qkv: Tensor, temperature: Tensor, *, backend: Backend, compiled: bool) -> bool:
    """Whether the backend's kernels accept these shapes and strides."""
    if backend == "triton":
        return qkv.shape[-1] <= 3 * WIDEST_IN_TRITON * len(temperature)
    return fits_cpu(qkv, temperature, compiled)


def attend_forward(qkv: Tensor, temperature: Tensor, backend: Backend) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `torch_forward` returns."""
    if backend == "triton":
        from .triton.cross_covariance import attend_forward as triton_forward

        return triton_forward(qkv, temperature)
    return (cpu_forward if backend == "cpu" else torch_forward)(qkv, temperature)


def torch_forward(qkv: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The output (B, N, C); and for the backward pass the inverse norms, the cosines and the attention."""
    heads = len(temperature)
    q, k, v = split_heads(qkv, 3, heads)
    inverse = inverse_norms(qkv, heads)
    cosines = (q.mT @ k) * (inverse[:, 0, :, :, None] * inverse[:, 1, :, None])
    attention = (cosines * temperature).softmax(dim=-1)
    return merge_heads(v @ attention.mT.to(v.dtype)), inverse, cosines, attention


def torch_backward(
    grad: Tensor, qkv: Tensor, temperature: Tensor, inverse: Tensor, cosines: Tensor, attention: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of qkv and of the temperature."""
    q, k, v = split_heads(qkv, 3, len(temperature))
    (g,) = split_heads(grad, 1, len(temperature))
    grad_attention = (g.mT @ v).to(attention.dtype)
    grad_scores = torch._softmax_backward_data(grad_attention, attention, -1, attention.dtype)
    grad_cosines = grad_scores * temperature
    grad_products = (grad_cosines * (inverse[:, 0, :, :, None] * inverse[:, 1, :, None])).to(q.dtype)
    # Scaling a column does not change the normalized one, so the gradient has no component along the column.
    along = grad_cosines * cosines
    along_q = (along.sum(-1) * inverse[:, 0].square()).to(q.dtype)[..., None, :]
    along_k = (along.sum(-2) * inverse[:, 1].square()).to(q.dtype)[..., None, :]
    grad_qkv = torch.empty_like(qkv)
    grad_q, grad_k, grad_v = split_heads(grad_qkv, 3, len(temperature))
    grad_q.copy_((k @ grad_products.mT).addcmul_(q, along_q, value=-1))
    grad_k.copy_((q @ grad_products).addcmul_(k, along_k, value=-1))
    grad_v.copy_(g @ attention.to(g.dtype))
    return grad_qkv, (grad_scores * cosines).sum((0, 2, 3))[:, None, None].to(temperature.dtype)


def inverse_norms(qkv: Tensor, heads: int) -> Tensor:
    """1 / L2 norm over the tokens, of every channel of queries and keys, (B, 2, heads, d), at least in fp32."""
    q_and_k = qkv[..., : 2 * qkv.shape[-1] // 3]
    squares = q_and_k.to(torch.promote_types(qkv.dtype, torch.float32)).square().sum(1)
    return squares.sqrt_().clamp_min_(1e-12).reciprocal_().unflatten(-1, (2, heads, -1))


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(B, N, parts · C) → `parts` views of (B, heads, N, d)."""
    return x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind()


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, N, d) → (B, N, C)."""
    return x.transpose(1, 2).flatten(2)
