"""The linear layers with a custom backward pass: the input that they return, and the gradients of biases."""

import pytest
import torch
from torch import Tensor, nn

from xcit.kernels import norm_linear
from xcit.kernels.matmul import grad_bias

from .test_layers import tokens


@pytest.mark.parametrize("used", [("x",), ("y",), ("x", "y")])
def test_a_norm_returns_its_input(used: tuple[str, ...]) -> None:
    """Either of the two outputs may be unused."""
    norm, layer, x = nn.LayerNorm(48), nn.Linear(48, 32), tokens(2, 5, 48).requires_grad_()

    def gradients(x_on: Tensor, y: Tensor) -> tuple[Tensor | None, ...]:
        loss = sum(t.square().sum() for name, t in (("x", x_on), ("y", y)) if name in used)
        return torch.autograd.grad(loss, (x, *norm.parameters(), *layer.parameters()), allow_unused=True)

    x_on, y = norm_linear(x, norm, layer)
    assert torch.equal(x_on, x) and x_on.data_ptr() == x.data_ptr()
    for found, expected in zip(gradients(x_on, y), gradients(x, layer(norm(x))), strict=True):
        assert (found is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_bias_is_a_sum() -> None:
    """In any order of its n terms, a sum in fp32 is off by at most n · 2⁻²⁴ times the sum of their sizes."""
    grad = tokens(3, 700, 40) + 1
    error = (grad_bias(grad).double() - grad.double().sum((0, 1))).abs()
    assert (error <= 3 * 700 * 2**-24 * grad.double().abs().sum((0, 1))).all()
    halves = grad.to(torch.bfloat16)
    assert torch.equal(grad_bias(halves), halves.flatten(0, 1).sum(0))
