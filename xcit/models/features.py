"""Feature maps from several depths: the input of detection and segmentation heads."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from .timm_interface import TimmInterface


def default_taps(depth: int) -> tuple[int, ...]:
    """The layers whose maps detection and segmentation use: after 1/3, 1/2, 2/3 and all of the layers, from 0.

    These are 3, 5, 7 and 11 of 12 layers, and 7, 11, 15 and 23 of 24, as in the paper.

    Raises:
        InputError: there are fewer than 3 layers.
    """
    if depth < 3:
        raise InputError(f"depth={depth}: must be at least 3 layers, for four feature maps")
    return (depth // 3 - 1, depth // 2 - 1, 2 * depth // 3 - 1, depth - 1)


class FeatureMaps(nn.Module):
    """An XCiT that returns the feature maps after some of its layers, all (B, C, ⌈H / p⌉, ⌈W / p⌉).

    The counterpart of timm's models with features_only=True. Parts that no map depends on are removed.
    """

    output_fmt = "NCHW"

    def __init__(self, model: TimmInterface, out_indices: int | Sequence[int]) -> None:
        super().__init__()
        if not model.layer_numbers(out_indices):
            raise InputError(f"out_indices={out_indices}: must name at least one layer")
        self.out_indices = tuple(model.prune_intermediate_layers(out_indices, prune_norm=True))
        self.feature_info = FeatureInfo(model.feature_info, self.out_indices)
        self.pretrained_cfg = self.default_cfg = model.pretrained_cfg
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.model.forward_intermediates(images, self.out_indices, intermediates_only=True)
        assert isinstance(maps, list)
        return maps

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See `XCiT.set_grad_checkpointing`."""
        self.model.set_grad_checkpointing(enable)


class FeatureInfo:
    """The channels, reduction and module names of feature maps. The counterpart of timm's class.

    `info` has an entry for each layer of the model; `out_indices` are the layers whose maps are returned. The methods
    answer for these, or for the layers `idx`: an int gives one value, a list a list.
    """

    def __init__(self, info: Sequence[dict[str, Any]], out_indices: Sequence[int]) -> None:
        self.info = [{"index": i} | entry for i, entry in enumerate(info)]
        self.out_indices = tuple(out_indices)

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        entries = self.get_dicts([key], idx)
        return entries[key] if isinstance(entries, dict) else [entry[key] for entry in entries]

    def get_dicts(self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None) -> Any:
        if isinstance(idx, int):
            return {key: value for key, value in self.info[idx].items() if keys is None or key in keys}
        return [self.get_dicts(keys, i) for i in (self.out_indices if idx is None else idx)]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        return self.get("module", idx)

    def __len__(self) -> int:
        return len(self.info)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.info[index]
