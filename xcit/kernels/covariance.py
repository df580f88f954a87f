"""Cross-covariance attention through the covariance of the tokens: for many tokens, fewer products.

With X the normalised tokens (N × C) the scores of a head are Wq (XᵀX) Wkᵀ, the squared norms of its queries and keys
stand on the diagonals of Wq (XᵀX) Wqᵀ and Wk (XᵀX) Wkᵀ, and its output is X (Wp A Wv)ᵀ; the biases add terms of rank
one, through the column sums of X. So an image needs one product for XᵀX and one for the output, 2 N C² multiplications
instead of 4 N C², and queries, keys and values of the tokens are never made.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BATCHED = 1.15
"""What a product of every image with a matrix of its own costs beside one of all tokens with the same matrix."""


def is_cheaper(x: Tensor, heads: int, training: bool) -> bool:
    """Whether the covariance form costs less than nine tenths of the direct one, by their multiplications.

    Only in fp32 and above: the norms are differences of products that bf16 would round too early.
    """
    if x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(x.device.type):
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
    """Cross-covariance attention with both projections, of normalised tokens: (B, N, C) → (B, N, C). Keeps x alone.

    weight, bias: those of queries, keys and values together, (3C, C) and (3C,).
    """
    N, C, heads = x.shape[1], x.shape[2], len(temperature)
    qk_weight, v_weight = weight.split([2 * C, C])
    qk_bias, v_bias = bias.split([2 * C, C])

    covariance = Covariance.apply(x)
    along = F.linear(covariance, qk_weight)  # XᵀX Wᵀ, (B, C, 2C)
    sums = F.linear(x.sum(1), qk_weight)  # of each query and key over the tokens, but for its bias: (B, 2C)
    squares = (along * qk_weight.mT).sum(1) + (2 * sums + N * qk_bias) * qk_bias
    inverse = squares.clamp_min(1e-24).rsqrt().unflatten(-1, (2, heads, -1))

    q_weight, q_bias, k_bias = (t.unflatten(0, (heads, -1)) for t in (qk_weight[:C], qk_bias[:C], qk_bias[C:]))
    q_sums, k_sums, along_k = (t.unflatten(-1, (heads, -1)) for t in (sums[:, :C], sums[:, C:], along[..., C:]))
    scores = torch.einsum("hdc,bche->bhde", q_weight, along_k)
    scores = scores + (q_sums + N * q_bias)[..., None] * k_bias[:, None, :] + q_bias[..., None] * k_sums[:, :, None]
    cosines = scores * (inverse[:, 0, :, :, None] * inverse[:, 1, :, None])
    attention = (cosines * temperature).softmax(dim=-1)

    mixed = torch.einsum("ohd,bhde->bohe", proj_weight.unflatten(-1, (heads, -1)), attention).flatten(2)  # Wp A
    return torch.baddbmm((mixed @ v_bias + proj_bias)[:, None], x, F.linear(mixed, v_weight.mT).mT)


class Covariance(torch.autograd.Function):
    """XᵀX of each image, (B, N, C) → (B, C, C); it is symmetric, so its gradient is one product, not two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.mT @ x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x @ (gradient + gradient.mT)
