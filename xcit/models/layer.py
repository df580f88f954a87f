"""One XCiT layer: XCA, then LPI, then FFN; and what the paper's ablation puts in their place."""

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..kernels import (
    add_local_patch,
    attend,
    attend_by_covariance,
    chosen,
    gelu_linear,
    is_cheaper,
    norm_linear,
    parts_of,
    scaled_linear,
)
from .cross_covariance import CrossCovarianceAttention
from .feed_forward import FeedForward
from .local_patch import LocalPatchInteraction
from .self_attention import SelfAttention
from .stochastic_depth import StochasticDepth

ATTENTIONS = ("xca", "self_attention", "none")


class XCiTLayer(nn.Module):
    """One layer (paper, figure 1): each part is normalised before, scaled by its LayerScale after, and added.

    Args:
        dim, heads, layer_scale_init, drop_path_rate: see `XCiT`.
        attention: "xca", or "self_attention" between tokens, or "none".
        lpi: whether there is local patch interaction.
        l2_norm, temperature: see `CrossCovarianceAttention`.

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
    ) -> None:
        super().__init__()
        self.is_whole = attention == "xca" and l2_norm and temperature and lpi
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = make_attention(attention, dim, heads, l2_norm, temperature)
        self.gamma1 = nn.Parameter(layer_scale_init * torch.ones(dim))
        self.norm3 = nn.LayerNorm(dim, eps=1e-6)
        self.local_mp = LocalPatchInteraction(dim) if lpi else None
        self.gamma3 = nn.Parameter(layer_scale_init * torch.ones(dim))
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim, 4 * dim)
        self.gamma2 = nn.Parameter(layer_scale_init * torch.ones(dim))
        self.drop_path = StochasticDepth(drop_path_rate)
        if self.attn is None:
            del self.norm1, self.gamma1
        if self.local_mp is None:
            del self.norm3, self.gamma3
        self.made_of = parts_of(self)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.fast(x, grid) if self.is_whole and chosen(self, x) else self.plain(x, grid)

    def plain(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        if self.attn is not None:
            x = x + self.drop_path(self.gamma1 * self.attn(self.norm1(x)))
        if self.local_mp is not None:
            x = x + self.drop_path(self.gamma3 * self.local_mp(self.norm3(x), grid))
        return x + self.drop_path(self.gamma2 * self.mlp(self.norm2(x)))

    def fast(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """The same of a whole layer, by few kernels: fewer passes over the tokens, less kept for the backward pass."""
        attention, local, mlp = self.attn, self.local_mp, self.mlp
        assert isinstance(attention, CrossCovarianceAttention) and attention.temperature is not None
        assert local is not None
        if is_cheaper(x, attention.heads, training=torch.is_grad_enabled()):
            scaled = self.gamma1[:, None] * attention.proj.weight, self.gamma1 * attention.proj.bias
            linear = attention.qkv.weight, attention.qkv.bias
            branch = attend_by_covariance(self.norm1(x), attention.temperature, *linear, *scaled)
        else:
            x, qkv = norm_linear(x, self.norm1, attention.qkv)
            branch = scaled_linear(attend(qkv, attention.temperature), attention.proj, self.gamma1)
        x = x + self.drop_path(branch)
        shares = self.drop_path.shares(x)
        x = add_local_patch(x, self.norm3, local.conv1, local.bn, local.conv2, self.gamma3, grid, shares)
        x, hidden = norm_linear(x, self.norm2, mlp.fc1)
        return x + self.drop_path(gelu_linear(hidden, mlp.fc2, self.gamma2))


def make_attention(kind: str, dim: int, heads: int, l2_norm: bool, temperature: bool) -> nn.Module | None:
    if kind not in ATTENTIONS:
        raise InputError(f"attention={kind!r}: must be one of {', '.join(ATTENTIONS)}")
    if kind == "xca":
        return CrossCovarianceAttention(dim, heads, l2_norm=l2_norm, temperature=temperature)
    if not (l2_norm and temperature):
        raise InputError(f"l2_norm={l2_norm}, temperature={temperature}: are of attention='xca', not of {kind!r}")
    return SelfAttention(dim, heads) if kind == "self_attention" else None
