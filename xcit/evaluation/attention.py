"""Class-attention maps: how much the class token attends to each patch of an image."""

from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from ..models.xcit import XCiT


def class_attention_maps(model: nn.Module, images: Tensor) -> Tensor:
    """The attention of the class token to the patches in the last layer, (B, heads, ⌈H / p⌉, ⌈W / p⌉).

    In the last class-attention layer the class token attends to itself and to all patches. The weights of a head are
    at least 0 and sum to 1. The maps lack the weight of the class token itself, so they sum to less than 1.

    Args:
        model: an XCiT of this library, on the device of the images.
        images: (B, C, H, W), normalized.

    Raises:
        InputError: the model has no class attention.
    """
    if not isinstance(model, XCiT) or model.pool != "class_attention":
        raise InputError(f"{type(model).__name__}: only an XCiT with pool=class_attention has class-attention maps")
    last: Any = model.cls_attn_blocks[-1]
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        model.forward_features(images)
    finally:
        handle.remove()
    # The fast forms of the layers never compute the weights of all heads, so they are computed here.
    tokens, attention = last.norm1(seen[0]), last.attn
    q, k = attention.split_heads(attention.q(tokens[:, :1])), attention.split_heads(attention.k(tokens))
    weights: Tensor = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)  # (B, heads, 1, 1 + N)
    height, width = (-(-side // model.patch_size) for side in images.shape[-2:])
    return weights[:, :, 0, 1:].unflatten(-1, (height, width))
