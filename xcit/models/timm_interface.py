"""The methods and attributes of a model that timm's tools and training scripts use."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from ..preprocessing import Preprocessing
from .fast.checkpointing import checkpointed


class TimmInterface(nn.Module):
    """The attributes and methods that timm's tools use, for a model with the parts of `XCiT`."""

    blocks: nn.ModuleList
    norm: nn.LayerNorm
    head: nn.Module
    pool: str
    num_features: int
    num_classes: int

    def describe_for_timm(self, image_size: int, in_chans: int, patch_size: int, first_conv: str) -> None:
        """Set the attributes that timm's tools read: `resolve_model_data_config`, feature extraction, fine-tuning."""
        self.grad_checkpointing = False
        self.pretrained_cfg = self.default_cfg = {
            **Preprocessing.from_timm({"input_size": (in_chans, image_size, image_size)}).as_timm(),
            "num_classes": self.num_classes,
            "classifier": "head",
            "first_conv": first_conv,
        }
        self.feature_info = [
            {"num_chs": self.num_features, "reduction": patch_size, "module": f"blocks.{i}"}
            for i in range(len(self.blocks))
        ]

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patch tokens, (B, N, C), and their grid. Implemented by the model."""
        raise NotImplementedError

    def init_options(self) -> dict[str, Any]:
        """The keyword arguments that build the model. Implemented by HubMixin."""
        raise NotImplementedError

    def forward_intermediates(self, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Feature maps (B, C, ⌈H / p⌉, ⌈W / p⌉) after the XCiT layers `indices`, in the order of `indices`.

        Layers count from 0, or from the end if negative. Layers after the last of them are not computed.
        """
        wanted = self.layer_numbers(indices)
        x, grid = self.embed(images)
        maps: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks[: max(wanted, default=-1) + 1]):
            x = self.run_layer(block, x, grid)
            if i in wanted:
                maps[i] = x.mT.unflatten(-1, grid)
        return [maps[i] for i in wanted]

    def layer_numbers(self, indices: Sequence[int]) -> list[int]:
        """The indices of layers, counted from 0."""
        depth = len(self.blocks)
        for index in indices:
            if not -depth <= index < depth:
                raise InputError(f"indices={list(indices)}: layer {index} is not in -{depth} … {depth - 1}")
        return [index % depth for index in indices]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Save memory in training: keep only each layer's input, and recompute its activations in the backward pass."""
        self.grad_checkpointing = enable

    def run_layer(self, layer: nn.Module, *inputs: Any) -> Tensor:
        """layer(*inputs), with gradient checkpointing in training if it is switched on."""
        return checkpointed(layer, *inputs) if self.grad_checkpointing and self.training else layer(*inputs)

    def get_classifier(self) -> nn.Module:
        """The head: a linear layer, or the identity if num_classes is 0."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one for `num_classes` classes; 0 removes it.

        Raises:
            InputError: num_classes is negative, or global_pool differs from the model's, which cannot be changed.
        """
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
        self.pretrained_cfg.pop("label_names", None)  # those of the old head
        self.init_options()["num_classes"] = num_classes

    def no_weight_decay(self) -> set[str]:
        """Parameters of more than one dimension without weight decay. Submodules have methods of the same name."""
        return {"cls_token"} if self.pool == "class_attention" else set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that order the parameters by depth, for layer-wise learning rate decay."""
        del coarse  # one layer is already the finest group
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": r"^blocks\.(\d+)",
            "cls_attn_blocks": [(r"^cls_attn_blocks\.(\d+)", None), (r"^norm", (99999,))],
        }
