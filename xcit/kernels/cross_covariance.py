"""Cross-covariance attention of queries, keys and values: their norms act on the d × d scores, not on the tokens."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .cpu.library import attend_backward_pass, attend_pass, takes_attention
from .dispatch import by_triton

WIDEST_IN_TRITON = 128
"""Channels of a head: wider ones do not fit into registers."""


def attend(qkv: Tensor, temperature: Tensor) -> Tensor:
    """V · softmax(K̂ᵀ Q̂ / τ) of every head: (B, N, 3C), (heads, 1, 1) → (B, N, C). Keeps qkv and d × d matrices."""
    if not torch.is_grad_enabled():
        forward, _ = functions(route(qkv, temperature))
        return forward(qkv, temperature)[0]
    return Attend.apply(qkv, temperature)


class Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, temperature: Tensor) -> Tensor:
        ctx.route = route(qkv, temperature)
        forward, _ = functions(ctx.route)
        attended, *kept = forward(qkv, temperature)
        ctx.save_for_backward(qkv, temperature, *kept)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        _, backward = functions(ctx.route)
        return backward(gradient, *ctx.saved_tensors)


def route(qkv: Tensor, temperature: Tensor) -> str:
    if by_triton(qkv) and qkv.shape[-1] <= 3 * WIDEST_IN_TRITON * len(temperature):
        return "triton"
    return "passes" if takes_attention(qkv, temperature) else "torch"


def functions(route: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`forward` and `backward` below, or those that stand for them."""
    if route == "triton":
        from .triton.cross_covariance import attend_backward_by_triton, attend_by_triton

        return attend_by_triton, attend_backward_by_triton
    return (attend_pass, attend_backward_pass) if route == "passes" else (forward, backward)


def forward(qkv: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(attended, inverse norms, cosines, attention): the last three are for the backward pass."""
    heads = len(temperature)
    q, k, v = split_heads(qkv, 3, heads)
    inverse = inverse_norms(qkv, heads)
    cosines = (q.mT @ k) * (inverse[:, 0, :, :, None] * inverse[:, 1, :, None])
    attention = (cosines * temperature).softmax(dim=-1)
    return merge_heads(v @ attention.mT.to(v.dtype)), inverse, cosines, attention


def backward(
    gradient: Tensor, qkv: Tensor, temperature: Tensor, inverse: Tensor, cosines: Tensor, attention: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of qkv and of the temperature."""
    q, k, v = split_heads(qkv, 3, len(temperature))
    (g,) = split_heads(gradient, 1, len(temperature))
    of_scores = torch._softmax_backward_data((g.mT @ v).to(attention.dtype), attention, -1, attention.dtype)
    of_cosines = of_scores * temperature
    of_products = (of_cosines * (inverse[:, 0, :, :, None] * inverse[:, 1, :, None])).to(q.dtype)
    # A column's own norm takes back what the product gives it in its own direction.
    along = of_cosines * cosines
    q_share = (along.sum(-1) * inverse[:, 0].square()).to(q.dtype)[..., None, :]
    k_share = (along.sum(-2) * inverse[:, 1].square()).to(q.dtype)[..., None, :]
    of_qkv = torch.empty_like(qkv)
    of_q, of_k, of_v = split_heads(of_qkv, 3, len(temperature))
    of_q.copy_((k @ of_products.mT).addcmul_(q, q_share, value=-1))
    of_k.copy_((q @ of_products).addcmul_(k, k_share, value=-1))
    of_v.copy_(g @ attention.to(g.dtype))
    return of_qkv, (of_scores * cosines).sum((0, 2, 3))[:, None, None].to(temperature.dtype)


def inverse_norms(qkv: Tensor, heads: int) -> Tensor:
    """1 / L2 norm over the tokens of every channel of queries and keys, (B, 2, heads, d), in fp32 at least."""
    q_and_k = qkv[..., : 2 * qkv.shape[-1] // 3]
    squares = q_and_k.to(torch.promote_types(qkv.dtype, torch.float32)).square().sum(1)
    return squares.sqrt_().clamp_min_(1e-12).reciprocal_().unflatten(-1, (2, heads, -1))


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(B, N, parts · C) as so many views of (B, heads, N, d)."""
    return x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind()


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, N, d) → (B, N, C)."""
    return x.transpose(1, 2).flatten(2)
