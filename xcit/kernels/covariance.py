"""Cross-covariance attention through the covariance of the tokens: fewer multiplications where there are many tokens.

With X the normalized tokens (N × C) the scores of a head are Wq (XᵀX) Wkᵀ. The squared norms of its queries and keys
are the diagonals of Wq (XᵀX) Wqᵀ and Wk (XᵀX) Wkᵀ. Its output is X (Wp A Wv)ᵀ. The biases add terms of rank one,
through the column sums of X. So an image needs one product for XᵀX and one for the output, 2 N C² multiplications
instead of 4 N C². Queries, keys and values of the tokens are never computed.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import allows_covariance

BATCHED = 1.15
"""The cost of a batched product, each image with its own matrix, relative to one of all tokens with one matrix."""


def is_cheaper(x: Tensor, heads: int, training: bool) -> bool:
    """Whether the covariance form may run on x, (B, N, C), and has less than 90 % of the direct form's cost."""
    if not allows_covariance(x):
        return False
    N, C = x.shape[1:]
    d = C // heads
    if training:
        direct = 12 * N * C + 6 * N * d
        covariance = BATCHED * 5 * N * C + 9 * C * C + 6 * C * d
    else:
        direct = 4 * N * C + 2 * N * d
        covariance = BATCHED * 2 * N * C + 3 * C * C + 2 * C * d
    return covariance < 0.9 * direct


def attend_by_covariance(
    x: Tensor, temperature: Tensor, weight: Tensor, bias: Tensor, proj_weight: Tensor, proj_bias: Tensor
) -> Tensor:
    """Cross-covariance attention with both projections, of normalized tokens: (B, N, C) → (B, N, C). Saves x alone.

    weight, bias: of queries, keys and values together, (3C, C) and (3C,).
    """
    N, C, heads = x.shape[1], x.shape[2], len(temperature)
    qk_weight, v_weight = weight.split([2 * C, C])
    qk_bias, v_bias = bias.split([2 * C, C])

    # Norms and scores of every head, from the covariance and the column sums.
    covariance = Covariance.apply(x)
    along = F.linear(covariance, qk_weight)  # XᵀX Wᵀ, (B, C, 2C)
    sums = F.linear(x.sum(1), qk_weight)  # of queries and keys over the tokens, without bias, (B, 2C)
    squares = (along * qk_weight.mT).sum(1) + (2 * sums + N * qk_bias) * qk_bias
    inverse = squares.clamp_min(1e-24).rsqrt().unflatten(-1, (2, heads, -1))

    q_weight, q_bias, k_bias = (t.unflatten(0, (heads, -1)) for t in (qk_weight[:C], qk_bias[:C], qk_bias[C:]))
    q_sums, k_sums, along_k = (t.unflatten(-1, (heads, -1)) for t in (sums[:, :C], sums[:, C:], along[..., C:]))
    scores = torch.einsum("hdc,bche->bhde", q_weight, along_k)
    scores = scores + (q_sums + N * q_bias)[..., None] * k_bias[:, None, :] + q_bias[..., None] * k_sums[:, :, None]
    cosines = scores * (inverse[:, 0, :, :, None] * inverse[:, 1, :, None])
    attention = (cosines * temperature).softmax(dim=-1)

    # The output: values and output projection, mixed by the attention, as one matrix per image.
    mixed = torch.einsum("ohd,bhde->bohe", proj_weight.unflatten(-1, (heads, -1)), attention).flatten(2)  # Wp A
    return torch.baddbmm((mixed @ v_bias + proj_bias)[:, None], x, F.linear(mixed, v_weight.mT).mT)


class Covariance(torch.autograd.Function):
    """XᵀX of each image, (B, N, C) → (B, C, C). It is symmetric, so that its gradient is one product, not two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.mT @ x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x @ (grad + grad.mT)
