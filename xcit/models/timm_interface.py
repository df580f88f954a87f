"""The methods and attributes of a model that timm's tools and training scripts use."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from ..preprocessing import Preprocessing
from .fast.checkpointing import checkpointed
from .initialization import initialize_linear
from .options import check_values

OUTPUT_FORMATS = ("NCHW", "NLC")


class TimmInterface(nn.Module):
    """The attributes and methods that timm's tools use, for a model with the parts of `XCiT`."""

    blocks: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    pool: str
    global_pool: str
    num_features: int
    num_classes: int

    def describe_for_timm(
        self, image_size: tuple[int, int], in_chans: int, patch_size: int, first_conv: str, global_pool: str | None
    ) -> None:
        """Set the attributes that timm's tools read: `resolve_model_data_config`, feature extraction, fine-tuning."""
        has_class_token = self.pool == "class_attention"
        self.in_chans = in_chans
        self.embed_dim = self.head_hidden_size = self.num_features
        self.num_prefix_tokens = int(has_class_token)
        self.global_pool = global_pool if global_pool is not None else "token" if has_class_token else "avg"
        self.init_options()["global_pool"] = self.global_pool
        self.grad_checkpointing = False
        self.pretrained_cfg = self.default_cfg = {
            **Preprocessing.from_timm({"input_size": (in_chans, *image_size)}).as_timm(),
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

    def forward_class(self, x: Tensor, class_only: bool = False) -> Tensor:
        """The class-attention layers. Implemented by the model."""
        raise NotImplementedError

    def init_options(self) -> dict[str, Any]:
        """The keyword arguments that build the model. Implemented by HubMixin."""
        raise NotImplementedError

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        return_prefix_tokens: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The tokens after the last layer and feature maps after some XCiT layers, in the order of `indices`.

        Args:
            x: the images, (B, in_chans, H, W).
            indices: numbers of XCiT layers, from 0, or from the end if negative. An int n means the last n layers,
                None all.
            norm: apply the final LayerNorm to the maps.
            stop_early: leave out the XCiT layers after the last of `indices`. `intermediates_only` always does.
            output_fmt: "NCHW" for maps (B, C, ⌈H / p⌉, ⌈W / p⌉), "NLC" for tokens (B, N, C).
            intermediates_only: return only the maps.
            return_prefix_tokens: makes no difference, as in timm's models whose layers have no class token: in XCiT
                it joins the patches after the last XCiT layer.

        Returns:
            (the result of `forward_features`, maps), or the maps.
        """
        if output_fmt not in OUTPUT_FORMATS:
            raise InputError(f"output_fmt={output_fmt!r}: must be one of {', '.join(OUTPUT_FORMATS)}")
        wanted = self.layer_numbers(indices)
        blocks = list(self.blocks)
        if stop_early or intermediates_only:
            blocks = blocks[: max(wanted, default=-1) + 1]
        x, grid = self.embed(x)
        found: dict[int, Tensor] = {}
        for i, block in enumerate(blocks):
            x = self.run_layer(block, x, grid)
            if i in wanted:
                tokens = self.norm(x) if norm else x
                # tokens.mT.unflatten(-1, grid) would be no channels-last map for a single image: torch gives the first
                # dimension another stride, and convolutions of the map would copy it.
                found[i] = tokens.unflatten(1, grid).permute(0, 3, 1, 2) if output_fmt == "NCHW" else tokens
        intermediates = [found[i] for i in wanted]
        return intermediates if intermediates_only else (self.norm(self.forward_class(x)), intermediates)

    def layer_numbers(self, indices: int | Sequence[int] | None) -> list[int]:
        """The numbers of layers, counted from 0. See `forward_intermediates`."""
        depth = len(self.blocks)
        if indices is None:
            return list(range(depth))
        if isinstance(indices, int):
            if not 1 <= indices <= depth:
                raise InputError(f"indices={indices}: the last {indices} layers are not in 1 … {depth}")
            return list(range(depth - indices, depth))
        indices = list(indices) if isinstance(indices, Iterable) else [indices]
        for index in indices:
            if not isinstance(index, int) or not -depth <= index < depth:
                raise InputError(f"indices={indices}: layer {index} is not in -{depth} … {depth - 1}")
        return [index % depth for index in indices]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the parts that `forward_intermediates` does not need for these layers. Returns their numbers.

        Args:
            indices: see `forward_intermediates`.
            prune_norm: remove the final LayerNorm.
            prune_head: remove the class token, the class-attention layers and the head. The model is then one with
                pool="average" and global_pool="": it returns the patch tokens.
        """
        wanted = self.layer_numbers(indices)
        self.blocks = self.blocks[: max(wanted, default=-1) + 1]
        self.init_options()["depth"] = len(self.blocks)
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.register_parameter("cls_token", None)
            self.cls_attn_blocks, self.num_prefix_tokens = nn.ModuleList(), 0
            self.pool = self.init_options()["pool"] = "average"
            self.reset_classifier(0, "")
        return wanted

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

        Args:
            num_classes: outputs of the new head.
            global_pool: see `XCiT`; None keeps the present one.
        """
        present = {"global_pool": self.global_pool} if global_pool is None else {"global_pool": global_pool}
        check_values(self.init_options() | {"num_classes": num_classes} | present)
        parameter = next(self.parameters())
        device, dtype = parameter.device, parameter.dtype
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.num_features, num_classes, device=device, dtype=dtype)
            initialize_linear(self.head)
        self.head.train(self.training)
        self.num_classes = self.pretrained_cfg["num_classes"] = num_classes
        self.pretrained_cfg.pop("label_names", None)  # those of the old head
        self.global_pool = present["global_pool"]
        self.init_options().update(num_classes=num_classes, **present)

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
