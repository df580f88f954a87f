"""Class attention: the last layers, in which the class token gathers what the patches know (from CaiT)."""

import torch
from torch import Tensor, nn

from ..kernels import attend_class, chosen, parts_of
from .feed_forward import FeedForward


class ClassAttention(nn.Module):
    """Ordinary softmax attention with a single query, the class token; its cost is linear in the tokens.

    Input: (B, 1 + N, C), the class token first. Output: the new class token, (B, 1, C).
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.made_of = parts_of(self)

    def forward(self, x: Tensor) -> Tensor:
        attended = self.fast(x) if chosen(self, x) else self.plain(x)
        return self.proj(attended)

    def plain(self, x: Tensor) -> Tensor:
        q, k, v = (self.split_heads(t) for t in (self.q(x[:, :1]), self.k(x), self.v(x)))
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)  # (B, heads, 1, 1 + N)
        attended = weights.to(v.dtype) @ v  # (B, heads, 1, d)
        return attended.transpose(1, 2).flatten(2)

    def fast(self, x: Tensor) -> Tensor:
        """The same, with the projections of the keys and values moved to the class token's side."""
        return attend_class(x, self.q, self.k, self.v, self.heads)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, d)


class ClassAttentionLayer(nn.Module):
    """Class attention and an FFN on the class token (paper, section 3.3; CaiT, arXiv 2103.17239).

    Only the class token is updated in earnest, but the published weights fix what happens to the patch tokens:
    the first residual adds them, normalised and scaled, and the second adds them to themselves, so that they double
    from layer to layer. With `tokens_norm` the second norm runs over all tokens, otherwise over the class token alone.

    Input and output: (B, 1 + N, C), the class token first.
    """

    def __init__(self, dim: int, heads: int, layer_scale_init: float, tokens_norm: bool) -> None:
        super().__init__()
        self.tokens_norm = tokens_norm
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = ClassAttention(dim, heads)
        self.gamma1 = nn.Parameter(layer_scale_init * torch.ones(dim))
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim, 4 * dim)
        self.gamma2 = nn.Parameter(layer_scale_init * torch.ones(dim))

    def forward(self, x: Tensor, class_only: bool = False) -> Tensor:
        """(B, 1 + N, C); with `class_only` the class token alone, (B, 1, C): of the last layer nothing else is read."""
        normed = self.norm1(x)
        class_token = self.feed_forward(x[:, :1] + self.gamma1 * self.attn(normed))
        if class_only:
            return class_token
        patches = x[:, 1:] + self.gamma1 * normed[:, 1:]
        if self.tokens_norm:
            patches = self.norm2(patches)
        return torch.cat([class_token, patches + patches], dim=1)

    def feed_forward(self, class_token: Tensor) -> Tensor:
        class_token = self.norm2(class_token)
        return class_token + self.gamma2 * self.mlp(class_token)
