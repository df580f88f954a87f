"""torch.compile does not change results, and compiles all layers once."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import xcit
from xcit.kernels import dispatch
from xcit.models.fast.compiling import compile_model

from ..examples import tiny


def step(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    logits = model(images)
    logits.square().sum().backward()
    return {"logits": logits.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_a_compiled_model_learns_the_same_and_its_layers_are_compiled_once() -> None:
    torch._dynamo.reset()
    counters.clear()
    images = torch.randn(2, 3, 32, 24)
    plain = tiny(depth=3).train()
    compiled = copy.deepcopy(plain)
    compile_model(compiled)
    expected, found = step(plain, images), step(compiled, images)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-3, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1


def test_it_goes_on_learning_with_images_of_another_size() -> None:
    torch._dynamo.reset()
    plain = tiny(depth=1).train()
    compiled = copy.deepcopy(plain)
    compile_model(compiled)
    for size in (32, 48):
        images = torch.randn(2, 3, size, size)
        torch.testing.assert_close(
            step(compiled, images)["logits"], step(plain, images)["logits"], atol=1e-4, rtol=1e-3
        )


@pytest.mark.usefixtures("each_product_route")
def test_a_folded_copy_is_compiled_where_there_is_something_to_gain() -> None:
    torch._dynamo.reset()
    counters.clear()
    model, images = tiny(depth=3), torch.randn(2, 3, 32, 24)
    fused = xcit.fuse_for_inference(model)
    compile_model(fused)
    with torch.no_grad():
        torch.testing.assert_close(fused(images), model(images), atol=1e-5, rtol=1e-4)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == (0 if dispatch.ONEDNN else 1)


def test_a_folded_copy_can_be_compiled_as_a_whole() -> None:
    torch._dynamo.reset()
    model, images = tiny(depth=2), torch.randn(2, 3, 32, 24)
    fused = torch.compile(xcit.fuse_for_inference(model))
    with torch.no_grad():
        torch.testing.assert_close(fused(images), model(images), atol=1e-5, rtol=1e-4)


def test_another_model_is_compiled_as_a_whole() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    compile_model(model)
    assert model._compiled_call_impl is not None
