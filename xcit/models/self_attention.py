"""Self-attention between tokens, as in ViT. The paper's ablation (table 4) compares XCA with it."""

import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head attention (Vaswani et al., arXiv 1706.03762), of cost quadratic in N. Input and output: (B, N, C)."""

    def __init__(self, dim: int, heads: int, attn_drop_rate: float = 0.0, proj_drop_rate: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.attn_drop_rate, self.proj_drop_rate = float(attn_drop_rate), float(proj_drop_rate)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, d)
        drop_rate = self.attn_drop_rate if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=drop_rate).transpose(1, 2).reshape(B, N, C)
        return F.dropout(self.proj(attended), self.proj_drop_rate, self.training)
