"""Class attention without keys and values of the patches: with one query, both projections can wait.

The scores are qᵀ(Wₖ x) = (Wₖᵀ q)ᵀ x, and the output is Σ aₙ (Wᵥ xₙ) = Wᵥ Σ aₙ xₙ: of the order of heads · N · C
operations instead of N · C².
"""

import torch
from torch import Tensor, nn


def attend_class(x: Tensor, q: nn.Linear, k: nn.Linear, v: nn.Linear, heads: int) -> Tensor:
    """What the class token, x[:, 0], reads from all tokens, before the output projection: (B, 1 + N, C) → (B, 1, C)."""
    query = q(x[:, 0]).unflatten(-1, (heads, -1))
    query = query * query.shape[-1] ** -0.5
    asked = torch.einsum("bhd,hdc->bhc", query, k.weight.unflatten(0, (heads, -1)))
    constant = torch.einsum("bhd,hd->bh", query, k.bias.unflatten(0, (heads, -1)))
    weights = (asked @ x.mT + constant[..., None]).softmax(dim=-1)  # (B, heads, 1 + N)
    read = torch.einsum("bhc,hdc->bhd", weights.to(x.dtype) @ x, v.weight.unflatten(0, (heads, -1)))
    return (read.flatten(1) + v.bias)[:, None]
