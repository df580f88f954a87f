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
from .fast.training import fuse_for_training, is_scripting
from .initialization import initialize_linear, truncated_normal
from .layer import XCiTLayer
from .options import ChecksNames, check_values, height_and_width
from .patch_embed import PATCH_EMBEDS
from .position import POSITIONS
from .timm_interface import TimmInterface


class XCiT(ChecksNames, HubMixin, TimmInterface):
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
        image_size: Pixels, or [height, width], for the grid of position=learned; the model accepts other sizes, too.
            It also stands in `pretrained_cfg`.
        global_pool: Features before the head: token, avg (of patches) or "" (all tokens); null: token if there is one.
        drop_rate: Dropout before the head, at least 0 and less than 1.
        pos_drop_rate: Dropout after the position encoding, at least 0 and less than 1.
        proj_drop_rate: Dropout after projections, at least 0 and less than 1; such layers run their plain form.
        attn_drop_rate: Dropout of attention maps, at least 0 and less than 1; such layers run their plain form.
        class_depth: Number of class-attention layers.
        patch_embed: Projection of the patches.
        attention: Attention of the XCiT layers: xca, self_attention (between tokens, as in ViT) or none.
        lpi: Whether there is local patch interaction.
        l2_norm: Whether XCA normalizes queries and keys.
        temperature: Whether XCA learns a temperature.
        position: Position encoding.
        pool: How the patch tokens become one vector. With "average" there are neither a class token nor
            class-attention layers.

    The defaults are those of timm's class; `create_model` knows the paper's variants. The options from patch_embed on
    are those of the paper's ablation (table 4 and appendix).

    Images are (B, in_chans, H, W) floats of any H and W that hold at least one patch. If the patch does not divide
    them, zeros are padded at the bottom and the right: the grid is (⌈H / p⌉, ⌈W / p⌉).

    Raises:
        InputError: an argument is unknown or out of range.
    """

    def __init__(
        self,
        *,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        layer_scale_init: float = 1.0,
        tokens_norm: bool = False,
        patch_size: Literal[2, 4, 8, 16, 32] = 16,
        num_classes: int = 1000,
        drop_path_rate: float = 0.0,
        in_chans: int = 3,
        image_size: int | list[int] = 224,
        global_pool: str | None = None,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        class_depth: int = 2,
        patch_embed: Literal["conv", "linear"] = "conv",
        attention: Literal["xca", "self_attention", "none"] = "xca",
        lpi: bool = True,
        l2_norm: bool = True,
        temperature: bool = True,
        position: Literal["sine", "learned", "none"] = "sine",
        pool: Literal["class_attention", "average"] = "class_attention",
    ) -> None:
        check_values(locals())
        super().__init__()
        self.patch_size, self.num_classes, self.num_features, self.pool = patch_size, num_classes, dim, pool
        has_class_token = pool == "class_attention"
        rates = {"attn_drop_rate": attn_drop_rate, "proj_drop_rate": proj_drop_rate}

        H, W = height_and_width(image_size)
        self.patch_embed = PATCH_EMBEDS[patch_embed](patch_size, in_chans, dim)
        self.pos_embed = POSITIONS[position](dim, (-(-H // patch_size), -(-W // patch_size)))
        self.pos_drop = nn.Dropout(pos_drop_rate)
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
                **rates,
            )
            for _ in range(depth)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if has_class_token else None
        self.cls_attn_blocks = nn.ModuleList(
            ClassAttentionLayer(dim, heads, layer_scale_init, tokens_norm, **rates)
            for _ in range(class_depth if has_class_token else 0)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(dim, num_classes) if num_classes > 0 else nn.Identity()
        self.init_weights()
        first_conv = "patch_embed.proj.0.0" if patch_embed == "conv" else "patch_embed.proj"
        self.describe_for_timm((H, W), in_chans, patch_size, first_conv, global_pool)
        fuse_for_training(self)  # the same layers and parameters, with fused operations

    def init_weights(self) -> None:
        """Linear layers and the class token: truncated normal with std 0.02. The rest: PyTorch's defaults."""
        if self.cls_token is not None:
            truncated_normal(self.cls_token)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialize_linear(module)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (B, num_classes); without a head the features, (B, C)."""
        return self.forward_head(self.forward_features(images, self.global_pool == "token"))

    def forward_features(self, images: Tensor, class_only: bool = False) -> Tensor:
        """Normalized tokens, (B, 1 + N, C): the class token, then the patches in row-major order.

        With `class_only` it returns the class token alone, (B, 1, C), and the last layer computes nothing else. With
        pool="average" there is no class token, and the result is (B, N, C).
        """
        x, grid = self.embed(images)
        for block in self.blocks:
            if is_scripting():  # TorchScript cannot compile run_layer
                x = block(x, grid)
            else:
                x = self.run_layer(block, x, grid)
        return self.norm(self.forward_class(x, class_only))

    def forward_class(self, x: Tensor, class_only: bool = False) -> Tensor:
        """Put the class token before the patches, (B, N, C) → (B, 1 + N, C), and run the class-attention layers.

        class_only: see `forward_features`.
        """
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
            for i, block in enumerate(self.cls_attn_blocks):
                only = class_only and i == len(self.cls_attn_blocks) - 1
                if is_scripting():
                    x = block(x, only)
                else:
                    x = self.run_layer(block, x, only)
        return x

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patch tokens with position encodings, (B, N, C), and their grid (H, W)."""
        require_a_patch(images, self.patch_size)
        x = self.patch_embed(images)
        grid = (x.shape[-2], x.shape[-1])
        return self.pos_drop((x + self.pos_embed(grid)).flatten(2).mT), grid

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits, (B, num_classes), from the result of `forward_features`; with `pre_logits` the features, (B, C).

        With global_pool="" these are the features and logits of all tokens, (B, 1 + N, C or num_classes).
        """
        if self.global_pool == "token":
            tokens = tokens[:, 0]
        elif self.global_pool == "avg":
            tokens = tokens[:, self.num_prefix_tokens :].mean(dim=1)
        features = self.head_drop(tokens)
        return features if pre_logits else self.head(features)


@torch.fx.wrap  # torch.fx calls it as a whole: it cannot trace a branch that depends on the image size
def require_a_patch(images: Tensor, patch_size: int) -> None:
    """Raise an InputError if the images hold no whole patch."""
    height, width = images.shape[-2:]
    if min(height, width) < patch_size:
        raise InputError(f"image of {height}×{width} pixels: must hold one patch of {patch_size}×{patch_size}")
