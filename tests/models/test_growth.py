"""The cost is linear in the number of tokens: no tensor in the model has tokens × tokens elements."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import xcit
from xcit.kernels import Kernels, forced

from .examples import tiny


class Made(TorchDispatchMode):
    """Counts the elements of every tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.elements += leaf.numel()
                self.largest = max(self.largest, leaf.numel())
        return result


def made(model: torch.nn.Module, side: int, training: bool) -> Made:
    with Made() as counted:
        logits = model.train(training)(torch.randn(2, 3, side, side))
        if training:
            logits.sum().backward()
    return counted


def growth(model: torch.nn.Module, training: bool) -> tuple[float, float]:
    """Cost ratio for four times the tokens, without the fixed cost; 4 means linear."""
    small, middle, large = (made(model, side, training) for side in (192, 384, 768))
    fit = (large.elements - middle.elements) / (middle.elements - small.elements)
    return fit, large.largest / middle.largest


@pytest.mark.parametrize("kind", ["plain", "fast"])
@pytest.mark.parametrize("training", [True, False])
def test_linear_in_the_tokens(kind: Kernels, training: bool) -> None:
    with forced(kind):
        fit, largest = growth(tiny(), training)
    assert fit == pytest.approx(4, rel=0.02)
    assert largest == pytest.approx(4, rel=0.02)


def test_linear_when_folded() -> None:
    fused = xcit.fuse_for_inference(tiny())
    fused(torch.randn(2, 3, 32, 32))  # packs its weights, once
    fit, largest = growth(fused, training=False)
    assert fit == pytest.approx(4, rel=0.02)
    assert largest == pytest.approx(4, rel=0.02)


def test_the_fit_sees_a_square() -> None:
    class Square(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            tokens = images.flatten(2).mT[:, ::16]
            return (tokens @ tokens.mT).mean()

    fit, largest = growth(Square(), training=False)
    assert fit > 8 and largest > 8
