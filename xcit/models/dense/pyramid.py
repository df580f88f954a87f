"""The feature pyramid of detection and segmentation: four maps of strides 4, 8, 16 and 32 (paper, section 4.3)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InputError
from ..features import default_taps

STRIDES = (4, 8, 16, 32)


class FeaturePyramid(nn.Module):
    """images → four feature maps: the tokens after four layers, brought to strides 4, 8, 16 and 32.

    The first map is enlarged with transposed convolutions, the last one is reduced with max pooling. The modules have
    the names of the authors' detectors (`fpn1` to `fpn4`). Images of any size are accepted: they are padded with zeros,
    which is the mean color, on the right and at the bottom to multiples of 32 pixels.

    Args:
        model: an XCiT, or a model of timm with one stride, as a ViT. What no map depends on is removed from it: the
            class token, the class attention, the final norm and the head.

    Raises:
        InputError: the model has no feature maps of one stride, or its stride is not 4, 8, 16 or 32.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        info: Any = getattr(model, "feature_info", None)
        strides = {entry["reduction"] for entry in info} if info and hasattr(model, "forward_intermediates") else set()
        if len(strides) != 1 or not strides <= set(STRIDES):
            raise InputError(
                f"model: must have feature maps of one stride (4, 8, 16 or 32 pixels), as XCiT and ViT; "
                f"{type(model).__name__} has {', '.join(map(str, sorted(strides))) or 'none'}"
            )
        self.width, (self.patch_size,) = info[0]["num_chs"], strides
        prune: Any = model.prune_intermediate_layers
        self.taps = tuple(prune(default_taps(len(info)), prune_norm=True, prune_head=True))
        self.model = model
        self.fpn1, self.fpn2, self.fpn3, self.fpn4 = (to_stride(s, self.patch_size, self.width) for s in STRIDES)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) → four maps (B, width, ⌈H / 32⌉ · 32 / stride, ⌈W / 32⌉ · 32 / stride)."""
        forward: Any = self.model.forward_intermediates
        layers = sorted(set(self.taps))  # a model of few layers uses one of them twice
        maps = dict(zip(layers, forward(padded(images), indices=layers, intermediates_only=True), strict=True))
        adapters = (self.fpn1, self.fpn2, self.fpn3, self.fpn4)
        # A transposed convolution takes a third of the time and half the memory if the channels are last, on CPUs. The
        # maps of an XCiT are stored so, those of a ViT are not.
        return [
            adapter(maps[tap].contiguous(memory_format=torch.channels_last))
            for adapter, tap in zip(adapters, self.taps, strict=True)
        ]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The model's patterns of layers, for layer-wise learning rate decay; see timm."""
        matcher: Any = self.model.group_matcher

        def below(pattern: Any) -> Any:
            if isinstance(pattern, str):
                return rf"^model\.(?:{pattern.replace('^', '')})"  # timm matches from the start of a name
            return [(below(regex), order) for regex, order in pattern]

        return {group: below(pattern) for group, pattern in matcher(coarse=coarse).items()}


def to_stride(stride: int, patch_size: int, width: int) -> nn.Module:
    """The adapter of a map of patches: transposed convolutions double its size, max pooling reduces it."""
    if stride == patch_size:
        return nn.Identity()
    if stride > patch_size:
        factor = stride // patch_size
        return nn.MaxPool2d(kernel_size=factor, stride=factor)
    steps: list[nn.Module] = []
    for _ in range(int(math.log2(patch_size // stride))):
        steps += [nn.BatchNorm2d(width), nn.GELU()] if steps else []
        steps.append(nn.ConvTranspose2d(width, width, kernel_size=2, stride=2))
    return nn.Sequential(*steps)


def padded(images: Tensor, multiple: int = STRIDES[-1]) -> Tensor:
    """The images, (B, C, H, W), with zeros on the right and at the bottom up to a multiple of pixels."""
    height, width = images.shape[-2:]
    right, bottom = -width % multiple, -height % multiple
    return F.pad(images, (0, right, 0, bottom)) if right or bottom else images
