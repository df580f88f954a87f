"""torch.compile, a layer at a time: the layers are alike, so that one is compiled and serves all."""

import torch
from torch import nn

from ...kernels import by_onednn
from ..xcit import XCiT
from .inference import FusedLayer


def compile_model(model: nn.Module) -> None:
    """Compile an XCiT's layers, in place; any other model as a whole.

    What is compiled is compiled at the first call; twelve layers take the time of one. For another size of images or of
    the batch layers in training are compiled anew: for any number of tokens torch's compiler fails at their gradients.
    The stem and the class-attention layers are compiled on a GPU alone: on a CPU they gain 1 % and take twenty seconds.
    A folded layer stays as it is where it consists of oneDNN's fused operators: the compiler has nothing to add, and
    cannot read the weights that they have packed.
    """
    device = next(model.parameters(), torch.empty(0)).device
    parts = list(model.blocks) if isinstance(model, XCiT) else [model]
    if device.type == "cuda" and isinstance(model, XCiT):
        parts += [model.patch_embed, *model.cls_attn_blocks]
    for part in parts:
        if not isinstance(part, FusedLayer):
            part.compile(dynamic=False if isinstance(model, XCiT) else None)
        elif not by_onednn(part.slope):
            part.compile()
