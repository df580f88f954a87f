"""The feature pyramid: strides, sizes, the taps, and what its model keeps."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import xcit
from xcit.engine.optimizer import parameter_groups
from xcit.errors import InputError
from xcit.models.dense.pyramid import FeaturePyramid, padded
from xcit.models.features import default_taps

from .examples import tiny


@pytest.mark.parametrize("patch_size", [8, 16])
@pytest.mark.parametrize("size", [(64, 96), (33, 70), (16, 200)])
def test_maps_have_strides_4_to_32(patch_size: int, size: tuple[int, int]) -> None:
    pyramid = FeaturePyramid(tiny(depth=3, patch_size=patch_size)).eval()
    sides = [-(-side // 32) * 32 for side in size]
    maps = pyramid(torch.randn(2, 3, *size))
    assert [x.shape for x in maps] == [(2, 128, sides[0] // stride, sides[1] // stride) for stride in (4, 8, 16, 32)]


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("patch_size", [8, 16])
def test_maps_have_their_channels_last_in_memory(images: int, patch_size: int) -> None:
    """Otherwise the transposed convolutions take three times as long on CPUs, and twice the memory."""
    vit = timm.create_model("vit_tiny_patch16_224", depth=3, patch_size=patch_size, dynamic_img_size=True)
    for model in (tiny(depth=3, patch_size=patch_size), vit):
        maps = FeaturePyramid(model).eval()(torch.randn(images, 3, 64, 96))
        assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)


def test_taps_are_the_papers() -> None:
    assert default_taps(12) == (3, 5, 7, 11)
    assert default_taps(24) == (7, 11, 15, 23)
    with pytest.raises(InputError, match="depth=2: must be at least 3"):
        default_taps(2)


@pytest.mark.parametrize("patch_size", [8, 16])
def test_maps_are_those_of_the_layers_through_the_authors_adapters(patch_size: int) -> None:
    whole = tiny(depth=6, patch_size=patch_size)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        layers = whole.forward_intermediates(images, indices=[1, 2, 3, 5], intermediates_only=True)
        pyramid = FeaturePyramid(whole).eval()
        found = pyramid(images)
        if patch_size == 16:
            first, norm, _, second = pyramid.fpn1
            x = F.conv_transpose2d(layers[0], first.weight, first.bias, stride=2)
            x = F.gelu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))
            expected = [
                F.conv_transpose2d(x, second.weight, second.bias, stride=2),
                F.conv_transpose2d(layers[1], pyramid.fpn2[0].weight, pyramid.fpn2[0].bias, stride=2),
                layers[2],
                F.max_pool2d(layers[3], 2),
            ]
        else:
            expected = [
                F.conv_transpose2d(layers[0], pyramid.fpn1[0].weight, pyramid.fpn1[0].bias, stride=2),
                layers[1],
                F.max_pool2d(layers[2], 2),
                F.max_pool2d(layers[3], 4),
            ]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_padding_is_on_the_right_and_at_the_bottom() -> None:
    images = torch.randn(1, 3, 40, 64)
    assert torch.equal(padded(images)[..., :40, :], images)
    assert padded(images).shape == (1, 3, 64, 64) and not padded(images)[..., 40:, :].any()
    assert padded(images[..., :32, :]) is not None and padded(images[..., :32, :]).shape == (1, 3, 32, 64)


def test_every_parameter_gets_a_gradient() -> None:
    """DistributedDataParallel waits for a gradient of each parameter."""
    pyramid = FeaturePyramid(tiny(depth=3, patch_size=16)).train()
    sum(x.square().mean() for x in pyramid(torch.randn(2, 3, 64, 64))).backward()
    assert [name for name, p in pyramid.named_parameters() if p.grad is None] == []


def test_layer_decay_orders_the_layers_of_the_model() -> None:
    class Task(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.head = FeaturePyramid(tiny(depth=3)), nn.Linear(3, 3)

    task = Task()
    groups = parameter_groups(task, weight_decay=0.05, layer_decay=0.5)
    scale = {id(p): group.get("lr_scale", 1.0) for group in groups for p in group["params"]}
    stem, first, last = (
        scale[id(task.get_parameter(f"model.{name}"))]
        for name in (
            "model.patch_embed.proj.0.0.weight",
            "model.blocks.0.attn.qkv.weight",
            "model.blocks.2.mlp.fc1.weight",
        )
    )
    assert stem < first < last <= scale[id(task.model.fpn1[0].weight)] == scale[id(task.head.weight)] == 1


def test_takes_a_vit_and_refuses_a_resnet() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", depth=3, dynamic_img_size=True)
    assert [x.shape[-1] for x in FeaturePyramid(vit)(torch.randn(1, 3, 64, 64))] == [16, 8, 4, 2]
    with pytest.raises(InputError, match=r"one stride \(4, 8, 16 or 32 pixels\), as XCiT and ViT; ResNet has 2, 4, 8"):
        FeaturePyramid(timm.create_model("resnet18"))


def test_the_pretrained_model_is_the_pyramids() -> None:
    model = xcit.create_model("xcit_n12", patch_size=8)
    weight = model.blocks[0].attn.qkv.weight
    assert FeaturePyramid(model).model.blocks[0].attn.qkv.weight is weight
