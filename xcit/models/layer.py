"""One XCiT layer: cross-covariance attention, local patch interaction and feed-forward network, with residuals."""

import torch
from torch import Tensor, nn

from ..errors import InputError
from .cross_covariance import CrossCovarianceAttention
from .feed_forward import FeedForward
from .local_patch import LocalPatchInteraction
from .self_attention import SelfAttention
from .stochastic_depth import StochasticDepth

ATTENTIONS = ("xca", "self_attention", "none")


class XCiTLayer(nn.Module):
    """One layer (paper, figure 1): each branch has a LayerNorm before it, and LayerScale and drop path after it.

    The branches run in the order XCA, LPI, FFN. `norm3` and `gamma3` belong to the second one, LPI: these are the names
    in the published weights.

    Args:
        dim, heads, layer_scale_init, drop_path_rate: see `XCiT`.
        attention: "xca", "self_attention" between tokens, or "none"; the paper's layer has "xca".
        lpi: whether the layer has local patch interaction; the paper's layer has it.
        l2_norm, temperature: see `CrossCovarianceAttention`.
        attn_drop_rate, proj_drop_rate: dropout in the attention and in the feed-forward network; 0 in the paper.

    Input and output: (B, N, C), the tokens of the grid (H, W) in row-major order.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        layer_scale_init: float,
        drop_path_rate: float = 0.0,
        *,
        attention: str = "xca",
        lpi: bool = True,
        l2_norm: bool = True,
        temperature: bool = True,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        rates = {"attn_drop_rate": attn_drop_rate, "proj_drop_rate": proj_drop_rate}
        self.attn = make_attention(attention, dim, heads, l2_norm, temperature, rates)
        self.gamma1 = nn.Parameter(layer_scale_init * torch.ones(dim))
        self.norm3 = nn.LayerNorm(dim, eps=1e-6)
        self.local_mp = LocalPatchInteraction(dim) if lpi else None
        self.gamma3 = nn.Parameter(layer_scale_init * torch.ones(dim))
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim, 4 * dim, proj_drop_rate)
        self.gamma2 = nn.Parameter(layer_scale_init * torch.ones(dim))
        self.drop_path = StochasticDepth(drop_path_rate)
        if self.attn is None:
            del self.norm1, self.gamma1
        if self.local_mp is None:
            del self.norm3, self.gamma3

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        if self.attn is not None:  # None only in the paper's ablation, as is local_mp
            x = x + self.drop_path(self.gamma1 * self.attn(self.norm1(x)))
        if self.local_mp is not None:
            x = x + self.drop_path(self.gamma3 * self.local_mp(self.norm3(x), grid))
        return x + self.drop_path(self.gamma2 * self.mlp(self.norm2(x)))


def make_attention(
    kind: str, dim: int, heads: int, l2_norm: bool, temperature: bool, rates: dict[str, float]
) -> nn.Module | None:
    if kind not in ATTENTIONS:
        raise InputError(f"attention={kind!r}: must be one of {', '.join(ATTENTIONS)}")
    if kind == "xca":
        return CrossCovarianceAttention(dim, heads, l2_norm=l2_norm, temperature=temperature, **rates)
    if not (l2_norm and temperature):
        raise InputError(
            f"l2_norm={l2_norm}, temperature={temperature}: are options of attention='xca', not of {kind!r}"
        )
    return SelfAttention(dim, heads, **rates) if kind == "self_attention" else None
