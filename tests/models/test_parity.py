"""With the same weights, outputs equal timm's."""

import pytest
import torch

import xcit
from scripts.parity import IMAGE_SIZES, pair, relative_difference

ARCHITECTURES = [(name, patch_size) for name in xcit.list_models() for patch_size in (16, 8)]


@pytest.mark.parametrize(("name", "patch_size"), ARCHITECTURES)
def test_logits_are_those_of_timm(name: str, patch_size: int) -> None:
    theirs, ours = pair(name, patch_size)
    with torch.inference_mode():
        for size in IMAGE_SIZES:
            images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
            assert relative_difference(ours(images), theirs(images)) < 1e-4


@pytest.mark.parametrize(("name", "patch_size"), [("xcit_n12", 8), ("xcit_t12", 16)])
def test_patch_tokens_are_those_of_timm(name: str, patch_size: int) -> None:
    """Class attention doubles the patch tokens. The features show that; the logits do not."""
    theirs, ours = pair(name, patch_size)
    assert isinstance(ours, xcit.XCiT)
    images = torch.randn(2, 3, 48, 80, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features, expected = ours.forward_features(images), theirs.forward_features(images)
        maps = ours.forward_intermediates(images, [3, 11], intermediates_only=True)
        expected_maps = theirs.forward_intermediates(images, [3, 11], intermediates_only=True)
    assert relative_difference(features, expected) < 1e-4
    for mine, other in zip(maps, expected_maps, strict=True):
        assert relative_difference(mine, other) < 1e-4


@pytest.mark.parametrize("size", [(65, 70), (47, 33)])
def test_sizes_that_the_patch_does_not_divide_are_those_of_timm(size: tuple[int, int]) -> None:
    theirs, ours = pair("xcit_n12", 16)
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        assert relative_difference(ours(images), theirs(images)) < 1e-4


@pytest.mark.parametrize("name", ["xcit_n12", "xcit_t24", "xcit_s12"])
def test_gradients_are_those_of_timm(name: str) -> None:
    """Gradients of parameters and images, and running statistics, equal timm's in training mode."""
    theirs, ours = (model.train() for model in pair(name, 16))
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(4, 3, 64, 96, generator=generator)
    direction = torch.randn(4, 1000, generator=generator)
    inputs = []
    for model in (theirs, ours):
        own = images.clone().requires_grad_()
        (model(own) * direction).sum().backward()
        inputs.append(own.grad)
    assert inputs[0] is not None and inputs[1] is not None
    assert relative_difference(inputs[1], inputs[0]) < 1e-4
    expected = {key: p.grad for key, p in theirs.named_parameters()}
    assert set(expected) == {key for key, _ in ours.named_parameters()}
    largest = max(g.norm() for g in expected.values())
    for key, parameter in ours.named_parameters():
        # Gradients that are zero except for rounding (a bias before a BatchNorm) are compared with the largest one.
        error = (parameter.grad - expected[key]).norm() / max(expected[key].norm(), 1e-5 * largest)
        assert error < 1e-3, key
    for (key, mine), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, other, msg=key)
