"""Class attention: in the last layers the class token gathers information from the patch tokens (from CaiT)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .feed_forward import FeedForward


class ClassAttention(nn.Module):
    """Softmax attention whose only query is the class token. Its cost is linear in the number of tokens.

    Input: (B, 1 + N, C), the class token first. Output: the new class token, (B, 1, C).
    """

    def __init__(self, dim: int, heads: int, attn_drop_rate: float = 0.0, proj_drop_rate: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.attn_drop_rate, self.proj_drop_rate = float(attn_drop_rate), float(proj_drop_rate)
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split_heads(self.q(x[:, :1])), self.split_heads(self.k(x)), self.split_heads(self.v(x))
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)  # (B, heads, 1, 1 + N)
        weights = F.dropout(weights, self.attn_drop_rate, self.training)
        attended = weights.to(v.dtype) @ v  # (B, heads, 1, d)
        return F.dropout(self.proj(attended.transpose(1, 2).flatten(2)), self.proj_drop_rate, self.training)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, d)


class ClassAttentionLayer(nn.Module):
    """Class attention and a feed-forward network on the class token (paper, section 3.3; CaiT, arXiv 2103.17239).

    Attention and the feed-forward network update the class token only. The published weights fix what happens to the
    patch tokens: the first residual connection adds their normalized and scaled values, and the second adds them to
    themselves, so they double in each layer. With `tokens_norm` the second norm runs over all tokens, otherwise over
    the class token alone.

    Input and output: (B, 1 + N, C), the class token first.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        layer_scale_init: float,
        tokens_norm: bool,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.tokens_norm = tokens_norm
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = ClassAttention(dim, heads, attn_drop_rate, proj_drop_rate)
        self.gamma1 = nn.Parameter(layer_scale_init * torch.ones(dim))
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim, 4 * dim, proj_drop_rate)
        self.gamma2 = nn.Parameter(layer_scale_init * torch.ones(dim))

    def forward(self, x: Tensor, class_only: bool = False) -> Tensor:
        """(B, 1 + N, C). With `class_only` it computes the class token alone, (B, 1, C): enough for the last layer."""
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
