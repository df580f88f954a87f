"""Feature maps from several depths: the input of detection and segmentation heads."""

from collections.abc import Sequence

from torch import Tensor, nn

from .timm_interface import TimmInterface


class FeatureMaps(nn.Module):
    """An XCiT that returns the feature maps after some of its layers, all (B, C, ⌈H / p⌉, ⌈W / p⌉).

    The counterpart of timm's models with features_only=True. Parts that no map depends on are removed.
    """

    def __init__(self, model: TimmInterface, out_indices: Sequence[int]) -> None:
        super().__init__()
        self.out_indices = tuple(model.layer_numbers(out_indices))
        self.feature_info = FeatureInfo([model.feature_info[index] for index in self.out_indices])
        model.blocks = model.blocks[: max(self.out_indices) + 1]
        for part in ("cls_token", "cls_attn_blocks", "norm", "head"):
            setattr(model, part, None)
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.model.forward_intermediates(images, self.out_indices)


class FeatureInfo:
    """The feature maps' channels, reduction and module names. The counterpart of timm's class."""

    def __init__(self, entries: Sequence[dict]) -> None:
        self.entries = entries

    def channels(self) -> list[int]:
        return [entry["num_chs"] for entry in self.entries]

    def reduction(self) -> list[int]:
        return [entry["reduction"] for entry in self.entries]

    def module_name(self) -> list[str]:
        return [entry["module"] for entry in self.entries]
