"""torch.compile, a layer at a time: the layers are alike, so that one is compiled and serves all."""

from torch import nn

from ..kernels.products import by_onednn
from .fused import FusedLayer
from .xcit import XCiT


def compile_model(model: nn.Module) -> None:
    """Compile an XCiT's layers, in place; any other model as a whole.

    What is compiled is compiled at the first call. Twelve layers take the time of one, and what stands around them
    (the stem, the two class-attention layers, the head) gains little. A folded layer stays as it is where it consists
    of oneDNN's fused operators: the compiler has nothing to add, and cannot read the weights that they have packed.
    """
    parts = [model.patch_embed, *model.blocks, *model.cls_attn_blocks] if isinstance(model, XCiT) else [model]
    for part in parts:
        if not (isinstance(part, FusedLayer) and by_onednn(part.slope)):
            part.compile()
