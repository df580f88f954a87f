"""torch.compile, one layer at a time: all layers have the same code, so they share one compilation."""

import torch
from torch import nn

from ...kernels import by_onednn, compiles_whole_model
from ..xcit import XCiT
from .inference import FoldedXCiTLayer


def compile_model(model: nn.Module) -> None:
    """Compile the layers of an XCiT, in place; any other model as a whole.

    Compilation happens at the first call; compiling twelve layers takes as long as compiling one. In training, a new
    image or batch size compiles the layers again, because PyTorch's compiler fails in their backward pass if the number
    of tokens is dynamic. The stem and the class-attention layers are compiled only on a GPU. Folded layers that run
    oneDNN's fused operators are not compiled: the compiler cannot make them faster, nor read oneDNN's packed weights.
    """
    parameter = next(model.parameters(), torch.empty(0))
    parts = list(model.blocks) if isinstance(model, XCiT) else [model]
    if isinstance(model, XCiT) and compiles_whole_model(parameter):
        parts += [model.patch_embed, *model.cls_attn_blocks]
    for part in parts:
        if not isinstance(part, FoldedXCiTLayer):
            part.compile(dynamic=False if isinstance(model, XCiT) else None)
        elif not by_onednn(part.gamma1):
            part.compile()
