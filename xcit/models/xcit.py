"""XCiT: the parts put together (El-Nouby et al., NeurIPS 2021, arXiv 2106.09681).

The names of modules and parameters are those of the published weights as timm stores them: state dicts pass between
the two as they are. That is why the LPI's norm and scale are number 3 though they act second.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import InputError
from .class_attention import ClassAttentionLayer
from .cross_covariance import CrossCovarianceAttention
from .feed_forward import FeedForward
from .local_patch import LocalPatchInteraction
from .patch_embed import PATCH_EMBEDS
from .position import SinePositionEncoding
from .stochastic_depth import StochasticDepth

PATCH_SIZES = (2, 4, 8, 16, 32)


class XCiTLayer(nn.Module):
    """One layer (paper, figure 1): XCA, then LPI, then FFN.

    Each is normalised before, scaled by its LayerScale after, and added to the residual stream.
    Input and output: (B, N, C), the tokens of the grid (H, W) in row-major order.
    """

    def __init__(self, dim: int, heads: int, layer_scale_init: float, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = CrossCovarianceAttention(dim, heads)
        self.gamma1 = nn.Parameter(layer_scale_init * torch.ones(dim))
        self.norm3 = nn.LayerNorm(dim, eps=1e-6)
        self.local_mp = LocalPatchInteraction(dim)
        self.gamma3 = nn.Parameter(layer_scale_init * torch.ones(dim))
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim, 4 * dim)
        self.gamma2 = nn.Parameter(layer_scale_init * torch.ones(dim))
        self.drop_path = StochasticDepth(drop_path_rate)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.gamma1 * self.attn(self.norm1(x)))
        x = x + self.drop_path(self.gamma3 * self.local_mp(self.norm3(x), grid))
        return x + self.drop_path(self.gamma2 * self.mlp(self.norm2(x)))


class XCiT(nn.Module):
    """The backbone with its class-attention head.

    Args:
        dim: width C of the tokens, a multiple of `heads` and of patch_size / 2.
        depth: number of XCiT layers; `class_depth` class-attention layers follow.
        layer_scale_init: first value of every LayerScale (the paper's ε).
        tokens_norm: see `ClassAttentionLayer`.
        patch_size: 2, 4, 8, 16 or 32 pixels.
        num_classes: outputs of the head; 0 leaves the head out, and `forward` returns the class token.
        drop_path_rate: stochastic depth, the same in every XCiT layer, in [0, 1).
        in_chans: channels of the images.
        patch_embed: "conv" or "linear".

    Images are (B, in_chans, H, W) floats of any H and W that hold at least one patch. Where the patch does not divide
    them they are padded at the bottom and the right: the grid is (⌈H / p⌉, ⌈W / p⌉).
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        layer_scale_init: float,
        tokens_norm: bool,
        patch_size: int = 16,
        num_classes: int = 1000,
        drop_path_rate: float = 0.0,
        in_chans: int = 3,
        patch_embed: str = "conv",
        class_depth: int = 2,
    ) -> None:
        super().__init__()
        if patch_size not in PATCH_SIZES:
            raise InputError(f"patch_size={patch_size}: must be one of {', '.join(map(str, PATCH_SIZES))}")
        if patch_embed not in PATCH_EMBEDS:
            raise InputError(f"patch_embed={patch_embed!r}: must be one of {', '.join(PATCH_EMBEDS)}")
        if heads < 1 or dim % heads:
            raise InputError(f"heads={heads}: must divide dim={dim}")
        if depth < 1 or class_depth < 1:
            raise InputError(f"depth={depth}, class_depth={class_depth}: must be at least 1")
        if not 0 <= drop_path_rate < 1:
            raise InputError(f"drop_path_rate={drop_path_rate}: must be at least 0 and less than 1")
        self.patch_size, self.num_classes, self.num_features = patch_size, num_classes, dim

        self.patch_embed = PATCH_EMBEDS[patch_embed](patch_size, in_chans, dim)
        self.pos_embed = SinePositionEncoding(dim)
        self.blocks = nn.ModuleList(XCiTLayer(dim, heads, layer_scale_init, drop_path_rate) for _ in range(depth))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.cls_attn_blocks = nn.ModuleList(
            ClassAttentionLayer(dim, heads, layer_scale_init, tokens_norm) for _ in range(class_depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes) if num_classes > 0 else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal of deviation 0.02 for linear layers and the class token; torch's own for the rest."""
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (B, num_classes)."""
        return self.head(self.forward_features(images)[:, 0])

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalised tokens, (B, 1 + N, C): the class token, then the patches in row-major order."""
        x, grid = self.embed(images)
        for block in self.blocks:
            x = block(x, grid)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        for block in self.cls_attn_blocks:
            x = block(x)
        return self.norm(x)

    def forward_intermediates(self, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Maps (B, C, ⌈H / p⌉, ⌈W / p⌉) after the XCiT layers `indices`, in the order asked for.

        Layers count from 0, or from the end when negative. Nothing behind the last of them is computed.
        """
        depth = len(self.blocks)
        for index in indices:
            if not -depth <= index < depth:
                raise InputError(f"indices={list(indices)}: layer {index} is not in -{depth} … {depth - 1}")
        wanted = [index % depth for index in indices]
        x, grid = self.embed(images)
        maps: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks[: max(wanted, default=-1) + 1]):
            x = block(x, grid)
            if i in wanted:
                maps[i] = x.mT.unflatten(-1, grid)
        return [maps[i] for i in wanted]

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patch tokens with their positions, (B, N, C), and their grid."""
        if min(images.shape[-2:]) < self.patch_size:
            height, width = images.shape[-2:]
            raise InputError(
                f"image of {height}×{width} pixels: must hold one patch of {self.patch_size}×{self.patch_size}"
            )
        x = self.patch_embed(images)
        grid = (x.shape[-2], x.shape[-1])
        return (x + self.pos_embed(grid)).flatten(2).mT, grid

    def no_weight_decay(self) -> set[str]:
        return {"cls_token"}
