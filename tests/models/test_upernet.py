"""UperNet and the auxiliary head against a plain computation from the names of the authors' files, and their sizes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from xcit.models.dense.pyramid import FeaturePyramid
from xcit.models.dense.upernet import FCNHead, UperNet

from .dense_heads import WIDTH, bilinear, block, maps, with_telling_norms
from .examples import tiny


def test_equals_a_plain_computation() -> None:
    head = with_telling_norms(UperNet(WIDTH, 5, channels=6))
    levels, state = maps(224, 256), head.state_dict()

    last = levels[3]
    pooled = [
        bilinear(block(state, f"psp_modules.{i}.1", F.adaptive_avg_pool2d(last, side)), last.shape[-2:])
        for i, side in enumerate((1, 2, 3, 6))
    ]
    lateral = [block(state, f"lateral_convs.{i}", levels[i]) for i in range(3)]
    lateral.append(block(state, "bottleneck", torch.cat([last, *pooled], dim=1)))
    for i in (2, 1, 0):
        lateral[i] = lateral[i] + bilinear(lateral[i + 1], lateral[i].shape[-2:])
    refined = [block(state, f"fpn_convs.{i}", lateral[i]) for i in range(3)] + [lateral[3]]
    together = torch.cat([bilinear(x, (56, 64)) for x in refined], dim=1)
    found = block(state, "fpn_bottleneck", together)
    expected = F.conv2d(found, state["conv_seg.weight"], state["conv_seg.bias"])

    torch.testing.assert_close(head(levels), expected, atol=1e-4, rtol=1e-4)


def test_the_auxiliary_head_takes_the_map_of_stride_16() -> None:
    head = with_telling_norms(FCNHead(WIDTH, 5, channels=6))
    levels, state = maps(64, 96), head.state_dict()
    expected = F.conv2d(block(state, "convs.0", levels[2]), state["conv_seg.weight"], state["conv_seg.bias"])
    torch.testing.assert_close(head(levels), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("patch_size", [8, 16])
@pytest.mark.parametrize("size", [(33, 70), (64, 40)])
def test_logits_have_stride_4(patch_size: int, size: tuple[int, int]) -> None:
    pyramid = FeaturePyramid(tiny(depth=3, patch_size=patch_size)).eval()
    head = UperNet(pyramid.width, 5, channels=8).eval()
    sides = tuple(-(-side // 32) * 8 for side in size)
    assert head(pyramid(torch.randn(1, 3, *size))).shape == (1, 5, *sides)


def test_every_parameter_gets_a_gradient() -> None:
    head, auxiliary = UperNet(WIDTH, 5, channels=6).train(), FCNHead(WIDTH, 5, channels=6).train()
    for part in (head, auxiliary):
        part(maps(64, 64)).square().sum().backward()
        assert [name for name, p in part.named_parameters() if p.grad is None] == []


def test_no_map_of_stride_4_is_wider_than_the_head() -> None:
    """All levels side by side would be the largest tensor by far: 12 GB for an image of 6000 × 4000 pixels."""

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **(kwargs or {}))
            self.numel = max(self.numel, found.numel() if isinstance(found, Tensor) else 0)
            return found

    with torch.no_grad(), Largest() as largest:
        UperNet(WIDTH, 5, channels=16).eval()(maps(128, 128, batch=1))
    assert largest.numel == 16 * 32 * 32
