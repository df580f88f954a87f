"""XCiT: the parts put together (El-Nouby et al., NeurIPS 2021, arXiv 2106.09681).

The names of modules and parameters are those of the published weights as timm stores them: state dicts pass between
the two as they are. That is why the LPI's norm and scale are number 3 though they act second.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..kernels import as_map, possible, try_out
from ..preprocessing import IMAGENET_MEAN, IMAGENET_STD
from ..weights.hub import HubMixin
from .class_attention import ClassAttentionLayer
from .fast.checkpointing import recomputed
from .layer import XCiTLayer
from .patch_embed import PATCH_EMBEDS
from .position import POSITIONS

PATCH_SIZES = (2, 4, 8, 16, 32)
POOLS = ("class_attention", "average")


class XCiT(HubMixin):
    """The backbone with its class-attention head.

    Args:
        dim: width C of the tokens, a multiple of `heads` and of patch_size / 2.
        depth: number of XCiT layers; `class_depth` class-attention layers follow.
        layer_scale_init: first value of every LayerScale (the paper's ε).
        tokens_norm: see `ClassAttentionLayer`.
        patch_size: 2, 4, 8, 16 or 32 pixels.
        num_classes: outputs of the head; 0 leaves the head out, and `forward` returns the features before it.
        drop_path_rate: stochastic depth, the same in every XCiT layer, in [0, 1).
        in_chans: channels of the images.
        image_size: the resolution that it is made for, in pixels: what `pretrained_cfg` tells, and the grid of
            position="learned".

    The paper's ablation (table 4 and appendix); the first of each is XCiT:

        patch_embed: "conv" or "linear" projection of the patches.
        attention: "xca", "self_attention" between tokens (ViT), or "none".
        lpi: whether there is local patch interaction.
        l2_norm, temperature: whether XCA normalises queries and keys, and learns a temperature.
        position: "sine", "learned" or "none".
        pool: "class_attention", or "average" of the patch tokens: no class token, no class-attention layers.

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
        image_size: int = 224,
        class_depth: int = 2,
        patch_embed: str = "conv",
        attention: str = "xca",
        lpi: bool = True,
        l2_norm: bool = True,
        temperature: bool = True,
        position: str = "sine",
        pool: str = "class_attention",
    ) -> None:
        super().__init__()
        for key, value, accepted in (
            ("patch_size", patch_size, PATCH_SIZES),
            ("patch_embed", patch_embed, PATCH_EMBEDS),
            ("position", position, POSITIONS),
            ("pool", pool, POOLS),
        ):
            if value not in accepted:
                raise InputError(f"{key}={value!r}: must be one of {', '.join(map(str, accepted))}")
        if heads < 1 or dim % heads:
            raise InputError(f"heads={heads}: must divide dim={dim}")
        if depth < 1 or class_depth < 1:
            raise InputError(f"depth={depth}, class_depth={class_depth}: must be at least 1")
        if num_classes < 0:
            raise InputError(f"num_classes={num_classes}: must be at least 0")
        if not 0 <= drop_path_rate < 1:
            raise InputError(f"drop_path_rate={drop_path_rate}: must be at least 0 and less than 1")
        self.patch_size, self.num_classes, self.num_features, self.pool = patch_size, num_classes, dim, pool
        self.grad_checkpointing = False
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

        # What timm's tools read: resolve_model_data_config, feature extraction, the name of the classifier.
        self.pretrained_cfg = self.default_cfg = {
            "input_size": (in_chans, image_size, image_size),
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "num_classes": num_classes,
            "classifier": "head",
            "first_conv": "patch_embed.proj.0.0" if patch_embed == "conv" else "patch_embed.proj",
        }
        self.feature_info = [{"num_chs": dim, "reduction": patch_size, "module": f"blocks.{i}"} for i in range(depth)]

    def init_weights(self) -> None:
        """Truncated normal of deviation 0.02 for linear layers and the class token; torch's own for the rest."""
        if self.pool == "class_attention":
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (B, num_classes); without a head the features before it, (B, C)."""
        return self.forward_head(self.forward_features(images, class_only=True))

    def forward_features(self, images: Tensor, class_only: bool = False) -> Tensor:
        """Normalised tokens, (B, 1 + N, C): the class token, then the patches in row-major order.

        With `class_only` the class token alone, (B, 1, C), and what else nothing reads is not computed. With
        pool="average" there is no class token: (B, N, C).
        """
        x, grid = self.embed(images)
        for block in self.blocks:
            x = self.run(block, x, grid)
        if self.pool == "class_attention":
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        for block in self.cls_attn_blocks:
            x = self.run(block, x, class_only and block is self.cls_attn_blocks[-1])
        return self.norm(x)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits, (B, num_classes), of what `forward_features` returns; or what the classifier is given, (B, C)."""
        features = tokens[:, 0] if self.pool == "class_attention" else tokens.mean(dim=1)
        return features if pre_logits else self.head(features)

    def forward_intermediates(self, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Maps (B, C, ⌈H / p⌉, ⌈W / p⌉) after the XCiT layers `indices`, in the order asked for.

        Layers count from 0, or from the end when negative. Nothing behind the last of them is computed.
        """
        wanted = self.layer_numbers(indices)
        x, grid = self.embed(images)
        maps: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks[: max(wanted, default=-1) + 1]):
            x = self.run(block, x, grid)
            if i in wanted:
                maps[i] = as_map(x, grid)
        return [maps[i] for i in wanted]

    def layer_numbers(self, indices: Sequence[int]) -> list[int]:
        """The layers that are meant, counted from 0."""
        depth = len(self.blocks)
        for index in indices:
            if not -depth <= index < depth:
                raise InputError(f"indices={list(indices)}: layer {index} is not in -{depth} … {depth - 1}")
        return [index % depth for index in indices]

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patch tokens with their positions, (B, N, C), and their grid."""
        if min(images.shape[-2:]) < self.patch_size:
            height, width = images.shape[-2:]
            raise InputError(
                f"image of {height}×{width} pixels: must hold one patch of {self.patch_size}×{self.patch_size}"
            )
        try_out(images)
        if possible(images):  # with the channels last the stem is faster, and its map is the tokens as they are
            images = images.contiguous(memory_format=torch.channels_last)
        x = self.patch_embed(images)
        grid = (x.shape[-2], x.shape[-1])
        return (x + self.pos_embed(grid)).flatten(2).mT, grid

    def run(self, layer: nn.Module, *inputs: Any) -> Tensor:
        """The layer's output; in training with gradient checkpointing, its activations are computed twice, not kept."""
        return recomputed(layer, *inputs) if self.grad_checkpointing and self.training else layer(*inputs)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training: keep the input of each layer alone, and compute the rest again."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The head: a linear layer, or the identity where num_classes is 0."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for another number of classes; 0 leaves it out. What is pooled cannot be changed afterwards."""
        if num_classes < 0:
            raise InputError(f"num_classes={num_classes}: must be at least 0")
        if global_pool not in (None, "token" if self.pool == "class_attention" else "avg"):
            raise InputError(f"global_pool={global_pool!r}: is fixed when the model is built, by pool={self.pool!r}")
        device, dtype = self.norm.weight.device, self.norm.weight.dtype
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.num_features, num_classes, device=device, dtype=dtype)
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
        self.head.train(self.training)
        self.num_classes = self.pretrained_cfg["num_classes"] = num_classes
        self.init_options()["num_classes"] = num_classes

    def no_weight_decay(self) -> set[str]:
        """Parameters that should not decay, besides the one-dimensional; each part adds its own (see `undecayed`)."""
        return {"cls_token"} if self.pool == "class_attention" else set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The layers in order, as timm's layer-wise learning rate decay asks for them."""
        del coarse  # a layer is the finest division that there is
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": r"^blocks\.(\d+)",
            "cls_attn_blocks": [(r"^cls_attn_blocks\.(\d+)", None), (r"^norm", (99999,))],
        }
