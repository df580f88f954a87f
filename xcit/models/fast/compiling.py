"""torch.compile, one layer at a time: the layers are alike, so compiling one serves them all."""

import torch
from torch import nn

from ...kernels import by_onednn, try_out
from ..xcit import XCiT
from .inference import FoldedXCiTLayer


def compile_model(model: nn.Module) -> None:
    """Compile the layers of an XCiT, in place; any other model as a whole.

    Compilation happens at the first call, and takes for twelve layers the time of one. In training, a new image or
    batch size compiles the layers again: with a dynamic number of tokens PyTorch's compiler fails in their backward
    pass. The stem and the class-attention layers are compiled on a GPU alone: on a CPU that takes twenty seconds and
    gains 1 %. Folded layers are not compiled where they run oneDNN's fused operators: the compiler has nothing to add,
    and cannot read oneDNN's packed weights.
    """
    parameter = next(model.parameters(), torch.empty(0))
    parts = list(model.blocks) if isinstance(model, XCiT) else [model]
    if parameter.device.type == "cuda" and isinstance(model, XCiT):
        parts += [model.patch_embed, *model.cls_attn_blocks]
        try_out(parameter.detach())  # compiled code cannot start the check of the Triton kernels
    for part in parts:
        if not isinstance(part, FoldedXCiTLayer):
            part.compile(dynamic=False if isinstance(model, XCiT) else None)
        elif not by_onednn(part.gamma1):
            part.compile()
