"""XCiT: cross-covariance image transformers (El-Nouby et al., NeurIPS 2021, arXiv 2106.09681).

Modules and parameters have the names of the published weights in timm's format, so state dicts pass between the two
libraries unchanged. That is why LPI's norm and scale have number 3 although they act second.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..weights.hub import HubMixin
from .class_attention import ClassAttentionLayer
from .fast.training import fuse_for_training
from .layer import XCiTLayer
from .patch_embed import PATCH_EMBEDS
from .position import POSITIONS
from .timm_interface import TimmInterface

PATCH_SIZES = (2, 4, 8, 16, 32)
POOLS = ("class_attention", "average")


class XCiT(HubMixin, TimmInterface):
    """The backbone with its class-attention head.

    Args:
        dim: Width C of the tokens, a multiple of heads and of patch_size / 2.
        depth: Number of XCiT layers, which class_depth class-attention layers follow.
        heads: Attention heads, a divisor of the width; null: the variant's number.
        layer_scale_init: Initial value of every LayerScale (the paper's ε).
        tokens_norm: Whether class attention normalizes the patch tokens, too. See `ClassAttentionLayer`.
        patch_size: Height and width of a patch in pixels.
        num_classes: Outputs of the head. 0 means no head: `forward` then returns the features.
        drop_path_rate: Rate of stochastic depth, the same in every XCiT layer, at least 0 and less than 1.
        in_chans: Channels of the images.
        image_size: Pixels, for the grid of position=learned; the model accepts other sizes, too. It also stands in
            `pretrained_cfg`.
        class_depth: Number of class-attention layers.
        patch_embed: Projection of the patches.
        attention: Attention of the XCiT layers: xca, self_attention (between tokens, as in ViT) or none.
        lpi: Whether there is local patch interaction.
        l2_norm: Whether XCA normalizes queries and keys.
        temperature: Whether XCA learns a temperature.
        position: Position encoding.
        pool: How the patch tokens become one vector. With "average" there are neither a class token nor
            class-attention layers.

    The options from patch_embed on are those of the paper's ablation (table 4 and appendix); the defaults are XCiT.

    Images are (B, in_chans, H, W) floats of any H and W that hold at least one patch. If the patch does not divide
    them, zeros are padded at the bottom and the right: the grid is (⌈H / p⌉, ⌈W / p⌉).

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        layer_scale_init: float,
        tokens_norm: bool,
        patch_size: Literal[2, 4, 8, 16, 32] = 16,
        num_classes: int = 1000,
        drop_path_rate: float = 0.0,
        in_chans: int = 3,
        image_size: int = 224,
        class_depth: int = 2,
        patch_embed: Literal["conv", "linear"] = "conv",
        attention: Literal["xca", "self_attention", "none"] = "xca",
        lpi: bool = True,
        l2_norm: bool = True,
        temperature: bool = True,
        position: Literal["sine", "learned", "none"] = "sine",
        pool: Literal["class_attention", "average"] = "class_attention",
    ) -> None:
        super().__init__()
        check_choices(patch_size=patch_size, patch_embed=patch_embed, position=position, pool=pool)
        check_numbers(dim, depth, class_depth, heads, num_classes, drop_path_rate)
        self.patch_size, self.num_classes, self.num_features, self.pool = patch_size, num_classes, dim, pool

        side = -(-image_size // patch_size)
        self.patch_embed = PATCH_EMBEDS[patch_embed](patch_size, in_chans, dim)
        self.pos_embed = POSITIONS[position](dim, (side, side))
        self.blocks = nn.ModuleList(
            XCiTLayer(
                dim,
                heads,
                layer_scale_init,
                drop_path_rate,
                attention=attention,
                lpi=lpi,
                l2_norm=l2_norm,
                temperature=temperature,
            )
            for _ in range(depth)
        )
        self.cls_attn_blocks = nn.ModuleList()
        if pool == "class_attention":
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
            self.cls_attn_blocks.extend(
                ClassAttentionLayer(dim, heads, layer_scale_init, tokens_norm) for _ in range(class_depth)
            )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes) if num_classes > 0 else nn.Identity()
        self.init_weights()
        first_conv = "patch_embed.proj.0.0" if patch_embed == "conv" else "patch_embed.proj"
        self.describe_for_timm(image_size, in_chans, patch_size, first_conv)
        fuse_for_training(self)  # the same layers and parameters, with fused operations

    def init_weights(self) -> None:
        """Linear layers and the class token: truncated normal with std 0.02. The rest: PyTorch's defaults."""
        if self.pool == "class_attention":
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (B, num_classes); without a head the features, (B, C)."""
        return self.forward_head(self.forward_features(images, class_only=True))

    def forward_features(self, images: Tensor, class_only: bool = False) -> Tensor:
        """Normalized tokens, (B, 1 + N, C): the class token, then the patches in row-major order.

        With `class_only` it returns the class token alone, (B, 1, C), and the last layer computes nothing else. With
        pool="average" there is no class token, and the result is (B, N, C).
        """
        x, grid = self.embed(images)
        for block in self.blocks:
            x = self.run_layer(block, x, grid)
        if self.pool == "class_attention":
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        for block in self.cls_attn_blocks:
            x = self.run_layer(block, x, class_only and block is self.cls_attn_blocks[-1])
        return self.norm(x)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patch tokens with position encodings, (B, N, C), and their grid (H, W)."""
        if min(images.shape[-2:]) < self.patch_size:
            height, width = images.shape[-2:]
            raise InputError(
                f"image of {height}×{width} pixels: must hold one patch of {self.patch_size}×{self.patch_size}"
            )
        x = self.patch_embed(images)
        grid = (x.shape[-2], x.shape[-1])
        return (x + self.pos_embed(grid)).flatten(2).mT, grid

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits, (B, num_classes), from the result of `forward_features`; with `pre_logits` the features, (B, C)."""
        features = tokens[:, 0] if self.pool == "class_attention" else tokens.mean(dim=1)
        return features if pre_logits else self.head(features)


def check_choices(**options: object) -> None:
    accepted = {"patch_size": PATCH_SIZES, "patch_embed": PATCH_EMBEDS, "position": POSITIONS, "pool": POOLS}
    for key, value in options.items():
        if value not in accepted[key]:
            raise InputError(f"{key}={value!r}: must be one of {', '.join(map(str, accepted[key]))}")


def check_numbers(dim: int, depth: int, class_depth: int, heads: int, num_classes: int, drop_path_rate: float) -> None:
    if heads < 1 or dim % heads:
        raise InputError(f"heads={heads}: must divide dim={dim}")
    if depth < 1 or class_depth < 1:
        raise InputError(f"depth={depth}, class_depth={class_depth}: must be at least 1")
    if num_classes < 0:
        raise InputError(f"num_classes={num_classes}: must be at least 0")
    if not 0 <= drop_path_rate < 1:
        raise InputError(f"drop_path_rate={drop_path_rate}: must be at least 0 and less than 1")
