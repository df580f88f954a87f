"""Class-attention maps are the weights that the model's last layer uses, and are drawn where their patches are."""

from itertools import combinations

import pytest
import torch

import xcit
from scripts.parity import make_weights_tell
from xcit.errors import InputError
from xcit.evaluation.attention import KEPT, class_attention_maps, draw, keep_mass, overlay, overlay_on_frames
from xcit.preprocessing import Preprocessing


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


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_the_maps_of_a_vit_are_the_weights_of_its_last_layer(name: str) -> None:
    torch.manual_seed(0)
    model = xcit.create_model("timm", name=name, num_classes=0).eval()
    make_weights_tell(model)
    size = model.patch_embed.patch_size[0]
    images = torch.randn(2, 3, 2 * size, 3 * size)
    with torch.inference_mode():
        maps = class_attention_maps(model, images)
        attention = model.blocks[-1].attn
        attention.fused_attn = False  # timm then computes the weights, which its dropout gets
        weights = []
        attention.attn_drop.register_forward_hook(lambda _, inputs, output: weights.append(output))
        model(images)
    expected = weights[0][:, :, 0, model.num_prefix_tokens :].unflatten(-1, (2, 3))
    assert maps.shape == (2, attention.num_heads, 2, 3)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-6)
    assert maps.sum(dim=(-2, -1)).max() < 1
    with pytest.raises(InputError, match=r"VisionTransformer: does not take these images .*divisible by patch size"):
        class_attention_maps(model, images[..., :-1])


def test_models_without_a_class_token_are_refused() -> None:
    model = xcit.create_model("timm", name="vit_base_patch16_siglip_224", num_classes=0)
    with pytest.raises(InputError, match="or timm's VisionTransformer with a class token"):
        class_attention_maps(model, torch.zeros(1, 3, 224, 224))


@pytest.mark.parametrize("mass", [0.1, 0.6, 0.95])
def test_the_mask_is_the_smallest_set_of_patches_with_the_mass(mass: float) -> None:
    """By trying all sets of 9 patches, each map on its own."""
    maps = torch.rand(2, 3, 3, 3, generator=torch.Generator().manual_seed(0)) ** 4
    masks = keep_mass(maps, mass)
    for values, mask in zip(maps.view(-1, 9), masks.view(-1, 9), strict=True):
        goal = mass * values.double().sum()
        sets = (kept for size in range(10) for kept in combinations(range(9), size))
        fewest = len(next(kept for kept in sets if values[list(kept)].double().sum() >= goal))
        assert mask.sum() == fewest
        assert values[mask].double().sum() >= goal
    assert len({int(mask.sum()) for mask in masks.flatten(0, 1)}) > 1 or mass != 0.6


def test_equal_patches_are_not_all_kept() -> None:
    assert keep_mass(torch.full((2, 5), 0.1), 0.55).sum() == 6
    for mass in (0.0, 1.0, float("nan")):
        with pytest.raises(InputError, match=f"mass={mass}: must be greater than 0 and less than 1"):
            keep_mass(torch.ones(2, 2), mass)


def test_each_patch_is_drawn_where_it_is() -> None:
    """Also over an image whose sides are no multiples of the patches."""
    pixels = torch.full((15, 9, 3), 100, dtype=torch.uint8)
    for patches in (torch.tensor([[0.0, 0.4], [0.0, 0.0]]), torch.tensor([[False, True], [False, False]])):
        drawn = overlay(pixels, patches).float().mean(dim=-1)
        assert drawn.shape == (15, 9)
        bright = drawn > 100
        assert bright[:8, 5:].all() and bright.sum() == 8 * 4
    assert overlay(pixels, patches)[0, 8].tolist() == [int(50 + value / 2) for value in KEPT]
    flat = overlay(pixels, torch.full((2, 2), 0.25))
    assert (flat == flat[0, 0]).all()


def test_the_figure_has_the_image_and_a_panel_for_each_head() -> None:
    maps = torch.rand(6, 2, 2)
    pixels = torch.full((16, 16, 3), 128, dtype=torch.uint8)
    figure = draw(pixels, maps, "a $title")
    assert [panel.get_title() for panel in figure.axes] == ["a $title", *(f"head {n}" for n in range(1, 7)), *[""] * 3]
    shown = torch.from_numpy(figure.axes[6].images[0].get_array())
    assert torch.equal(shown, overlay(pixels, maps[5]))


@pytest.mark.parametrize("name", ["xcit", "vit"])
def test_a_frame_is_seen_whole_and_keeps_its_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 × 100 pixels with the shorter side at 32: the nearest multiple of the patch size to the longer one is 48."""
    vit = {"name": "vit_tiny_patch16_224", "image_size": 32}
    model = xcit.create_model("xcit_n12", num_classes=0) if name == "xcit" else xcit.create_model("timm", **vit)
    sizes = []
    model.eval().register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape))
    monkeypatch.setattr(model, "forward_features", lambda images: sizes.append(images.shape) or forward(images))
    forward = type(model).forward_features.__get__(model)
    frame = torch.randint(256, (60, 100, 3), dtype=torch.uint8)
    for mass in (None, 0.6):
        drawn = overlay_on_frames(model, Preprocessing(size=(32, 32), crop_ratio=0.9), mass)(frame)
        assert (drawn.shape, drawn.dtype) == (frame.shape, torch.uint8)
    assert sizes == [(1, 3, 32, 48)] * 2
