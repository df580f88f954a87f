"""torch.compile, a layer at a time: the layers are alike, so that one is compiled and serves all."""

import torch
from torch import nn

from ..kernels.choice import HAS_TRITON, is_trusted
from ..kernels.products import by_onednn
from .fused import FusedLayer, FusedPatchEmbed
from .xcit import XCiT


def compile_model(model: nn.Module) -> None:
    """Compile an XCiT's parts, in place; any other model as a whole.

    What is compiled is compiled at the first call: the stem, one layer, which serves all, and a class-attention layer
    as it is used last and before. What is folded stays as it is where it consists of oneDNN's fused operators: the
    compiler has nothing to add, and cannot read the weights that they have packed.
    """
    parts = [model.patch_embed, *model.blocks, *model.cls_attn_blocks] if isinstance(model, XCiT) else [model]
    device = next(model.parameters(), torch.empty(0)).device
    if device.type == "cuda" and HAS_TRITON:
        is_trusted(device)  # which cannot be found out while something is compiled
    for part in parts:
        folded = isinstance(part, FusedLayer | FusedPatchEmbed)
        if not (folded and by_onednn(next(part.parameters()))):
            part.compile()
