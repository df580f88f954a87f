"""Class-attention maps are the weights that the model's last layer uses."""

import pytest
import torch

import xcit
from scripts.parity import make_weights_tell
from xcit.errors import InputError
from xcit.evaluation.attention import class_attention_maps


def test_the_maps_are_the_weights_of_the_last_layer() -> None:
    """With them, the layer's own values and projection give the layer's output."""
    torch.manual_seed(0)
    model = xcit.create_model("xcit_n12", patch_size=8, num_classes=3, class_depth=2).eval()
    make_weights_tell(model)
    images = torch.randn(2, 3, 40, 50)  # 50 is padded to 56
    attention = model.cls_attn_blocks[-1].attn
    caught = []
    handle = model.cls_attn_blocks[-1].register_forward_hook(lambda _, inputs, output: caught.append(inputs[0]))
    with torch.inference_mode():
        maps = class_attention_maps(model, images)
        handle.remove()
        tokens = model.cls_attn_blocks[-1].norm1(caught[0])
        assert maps.shape == (2, attention.heads, 5, 7)
        patches = maps.flatten(2)
        weights = torch.cat([1 - patches.sum(-1, keepdim=True), patches], dim=-1)
        assert (weights > 0).all()
        values = attention.v(tokens).unflatten(-1, (attention.heads, -1))
        attended = torch.einsum("bhn,bnhd->bhd", weights, values).flatten(1)
        torch.testing.assert_close(attention.proj(attended), attention(tokens)[:, 0], rtol=1e-4, atol=1e-5)
    assert not model.cls_attn_blocks[-1]._forward_pre_hooks


def test_a_model_without_class_attention_is_refused() -> None:
    for model in (xcit.create_model("xcit_n12", pool="average"), torch.nn.Linear(2, 2)):
        with pytest.raises(InputError, match="only an XCiT with pool=class_attention has class-attention maps"):
            class_attention_maps(model, torch.zeros(1, 3, 32, 32))
