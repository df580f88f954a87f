"""Class attention without keys and values of the patches.

There is one query, so the projections of keys and values can be applied to it instead of to every token. The scores
are qᵀ(Wₖ x) = (Wₖᵀ q)ᵀ x, and the output is Σ aₙ (Wᵥ xₙ) = Wᵥ Σ aₙ xₙ. That takes about heads · N · C multiplications
instead of N · C².
"""

import torch
from torch import Tensor, nn


def attend_class(x: Tensor, q: nn.Linear, k: nn.Linear, v: nn.Linear, heads: int) -> Tensor:
    """Attention of the class token, x[:, 0], to all tokens, before the output projection: (B, 1 + N, C) → (B, 1, C)."""
    query = q(x[:, 0]).unflatten(-1, (heads, -1))
    query = query * query.shape[-1] ** -0.5
    projected = torch.einsum("bhd,hdc->bhc", query, k.weight.unflatten(0, (heads, -1)))  # Wₖᵀ q
    constant = torch.einsum("bhd,hd->bh", query, k.bias.unflatten(0, (heads, -1)))
    weights = (projected @ x.mT + constant[..., None]).softmax(dim=-1)  # (B, heads, 1 + N)
    mean = weights.to(x.dtype) @ x  # Σ aₙ xₙ, (B, heads, C)
    value = torch.einsum("bhc,hdc->bhd", mean, v.weight.unflatten(0, (heads, -1)))
    return (value.flatten(1) + v.bias)[:, None]
