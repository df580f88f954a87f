"""torch.compile, a layer at a time: the layers are alike, so that one is compiled and serves all."""

from torch import nn

from .xcit import XCiT


def compile_model(model: nn.Module) -> None:
    """Compile an XCiT's layers, in place; any other model as a whole.

    What is compiled is compiled at the first call. Twelve layers take the time of one, and what is between them
    (the stem, the head) gains little.
    """
    for part in [*model.blocks, *model.cls_attn_blocks] if isinstance(model, XCiT) else [model]:
        part.compile()
