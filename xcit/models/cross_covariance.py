"""Cross-covariance attention (XCA): the paper's central idea.

Self-attention compares tokens, and its cost is quadratic in the number of tokens N. XCA compares channels: its
attention map is the d × d cross-covariance matrix of queries and keys. Its cost is linear in N, and the size of the map
does not depend on the image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CrossCovarianceAttention(nn.Module):
    """Attention between channels (paper, section 3.2, equation 2).

    For the queries, keys and values Q, K, V of one head, each N × d,

        XC-Attention(Q, K, V) = V · softmax(K̂ᵀ Q̂ / τ)

    where the hat means that each column is divided by its L2 norm over the tokens. The heads split the channels, so
    only the diagonal blocks of the covariance matrix are used ("block-diagonal cross-covariance attention"). The
    learned `temperature` is 1 / τ, one for each head.

    The paper's ablation (table 4) leaves out the normalization (l2_norm=False) or the temperature (temperature=False:
    τ is 1 and not learned). `attn_drop_rate` is dropout of the attention map, `proj_drop_rate` that of the output.

    Input and output: (B, N, C).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        l2_norm: bool = True,
        temperature: bool = True,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.l2_norm = heads, l2_norm
        self.attn_drop_rate, self.proj_drop_rate = float(attn_drop_rate), float(proj_drop_rate)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1)) if temperature else None
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        # Three tensors (B, heads, d, N): channels attend to channels, so they take the place that tokens have in ViT.
        qkv = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 4, 1).unbind(0)
        if self.l2_norm:
            q, k = unit_norm_over_tokens(q), unit_norm_over_tokens(k)
        scores = q @ k.mT  # (B, heads, d, d)
        if self.temperature is not None:
            scores = scores * self.temperature
        attention = F.dropout(scores.softmax(dim=-1), self.attn_drop_rate, self.training)
        attended = (attention.to(v.dtype) @ v).permute(0, 3, 1, 2).reshape(B, N, C)
        return F.dropout(self.proj(attended), self.proj_drop_rate, self.training)

    def no_weight_decay(self) -> set[str]:
        """The optimizer does not decay these parameters."""
        return {"temperature"}


@torch.fx.wrap  # torch.fx calls it as a whole: it does not know the type of x
def unit_norm_over_tokens(x: Tensor) -> Tensor:
    """Divide each channel of x, (…, d, N), by its L2 norm over the tokens. The entries of KᵀQ are then in [-1, 1].

    The norm is computed in fp32 or higher: a sum of squares over thousands of tokens overflows in fp16.
    """
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1).to(x.dtype)
