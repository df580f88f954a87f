"""Semantic FPN against a plain computation from the names of the authors' files, and its sizes."""

import pytest
import torch
import torch.nn.functional as F

from xcit.models.dense.pyramid import FeaturePyramid
from xcit.models.dense.semantic_fpn import SemanticFPN

from .dense_heads import WIDTH, bilinear, block, maps, with_telling_norms
from .examples import tiny


def test_equals_a_plain_computation() -> None:
    head = with_telling_norms(SemanticFPN(WIDTH, 5, channels=6))
    levels, state = maps(96, 160), head.state_dict()

    inner = [
        F.conv2d(x, state[f"neck.inner_blocks.{i}.0.weight"], state[f"neck.inner_blocks.{i}.0.bias"])
        for i, x in enumerate(levels)
    ]
    for i in (2, 1, 0):
        inner[i] = inner[i] + inner[i + 1].repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    total = torch.zeros(2, 6, 24, 40)
    for i, x in enumerate(inner):
        x = F.conv2d(x, state[f"neck.layer_blocks.{i}.0.weight"], state[f"neck.layer_blocks.{i}.0.bias"], padding=1)
        for j in range(0, max(1, 2 * i), 2):  # the authors count the doublings, too
            x = block(state, f"scale_heads.{i}.{j}", x)
            x = bilinear(x, (2 * x.shape[-2], 2 * x.shape[-1])) if i else x
        total = total + x
    expected = F.conv2d(total, state["conv_seg.weight"], state["conv_seg.bias"])

    torch.testing.assert_close(head(levels), expected, atol=1e-4, rtol=1e-4)
    convolutions = {name.removesuffix(".conv.weight") for name in state if name.endswith(".conv.weight")}
    assert convolutions == {f"scale_heads.{x}" for x in ("0.0", "1.0", "2.0", "2.2", "3.0", "3.2", "3.4")}


@pytest.mark.parametrize("patch_size", [8, 16])
@pytest.mark.parametrize("size", [(33, 70), (64, 40)])
def test_logits_have_stride_4(patch_size: int, size: tuple[int, int]) -> None:
    pyramid = FeaturePyramid(tiny(depth=3, patch_size=patch_size)).eval()
    head = SemanticFPN(pyramid.width, 5).eval()
    sides = tuple(-(-side // 32) * 8 for side in size)
    assert head(pyramid(torch.randn(1, 3, *size))).shape == (1, 5, *sides)


def test_every_parameter_gets_a_gradient() -> None:
    head = SemanticFPN(WIDTH, 5, channels=6).train()
    head(maps(64, 64)).square().sum().backward()
    assert [name for name, p in head.named_parameters() if p.grad is None] == []
