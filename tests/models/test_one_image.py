"""Gradients of a batch of one image are right in every way to compute them.

torch's BatchNorm computes wrong ones on CPUs if its input and the gradient of its output lie differently in memory.
"""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.fx.experimental.proxy_tensor import make_fx

from xcit.kernels import forced

from .examples import tiny

Gradients = dict[str, Tensor]
LABEL = torch.tensor([3])
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")


def backward(network: nn.Module, image: Tensor) -> Gradients:
    F.cross_entropy(network(image), LABEL).backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def in_plain_form(model: nn.Module, image: Tensor) -> Gradients:
    with forced("plain"):
        return backward(model, image)


def by_func(model: nn.Module, image: Tensor) -> Gradients:
    state = {name: p.detach() for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}

    def loss(state: Gradients, buffers: Gradients) -> Tensor:
        return F.cross_entropy(functional_call(model, (state, buffers), (image,)), LABEL)

    return grad(loss)(state, buffers)


def by_make_fx(model: nn.Module, image: Tensor) -> Gradients:
    """The whole step as a graph of torch's operations."""
    names = [name for name, _ in model.named_parameters()]

    def step(parameters: list[Tensor], image: Tensor) -> tuple[Tensor, ...]:
        own = [p.detach().requires_grad_() for p in parameters]
        loss = F.cross_entropy(functional_call(model, dict(zip(names, own, strict=True)), (image,)), LABEL)
        return torch.autograd.grad(loss, own)

    values = [p.detach() for p in model.parameters()]
    return dict(zip(names, make_fx(step)(values, image)(values, image), strict=True))


WAYS: dict[str, Callable[[nn.Module, Tensor], Gradients]] = {
    "eager": backward,
    "plain": in_plain_form,
    "torch.func.grad": by_func,
    "torch.jit.trace": lambda model, image: backward(torch.jit.trace(model, image, check_trace=False), image),
    "torch.jit.script": lambda model, image: backward(torch.jit.script(model), image),
    "torch.fx": lambda model, image: backward(torch.fx.symbolic_trace(model), image),
    "make_fx": by_make_fx,
}


def doubled(model: nn.Module, image: Tensor) -> Gradients:
    """The right gradients: in double precision, of two copies of the image, whose statistics are those of one."""
    reference = copy.deepcopy(model).double()
    F.cross_entropy(reference(image.double().repeat(2, 1, 1, 1)), LABEL.repeat(2)).backward()
    return {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("in_chans", [3, 1])
@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_one_image(way: str, in_chans: int, training: bool) -> None:
    model = tiny(in_chans=in_chans).train(training)
    image = torch.randn(1, in_chans, 24, 40, generator=torch.Generator().manual_seed(0))
    expected = doubled(model, image)
    found = WAYS[way](model, image)
    assert found.keys() == expected.keys()
    largest = max(value.norm() for value in expected.values())
    for name, value in expected.items():
        assert (found[name] - value).norm() < 1e-4 * max(value.norm(), 1e-3 * largest), name
