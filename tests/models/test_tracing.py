"""torch.jit.script and torch.fx compile and trace the plain form of the layers, with the same results."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

import xcit
from xcit.kernels import forced
from xcit.models.fast.inference import FoldedXCiTLayer
from xcit.models.fast.training import FastXCiTLayer

from .examples import tiny

OPTIONS: list[dict] = [
    {},
    {"attention": "self_attention"},
    {"attention": "none", "lpi": False},
    {"pool": "average"},
    {"position": "learned", "image_size": 32},
    {"position": "none", "patch_embed": "linear"},
    {"l2_norm": False, "temperature": False},
    {"global_pool": ""},
    {"drop_path_rate": 0.5, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_rate": 0.1, "pos_drop_rate": 0.1},
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options) or "xcit")
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")


def images_of(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@each_option
def test_a_scripted_model_computes_the_same_for_any_size(options: dict, tmp_path: Path) -> None:
    model = tiny(**options)
    torch.jit.save(torch.jit.script(model), tmp_path / "scripted.pt")
    scripted = torch.jit.load(tmp_path / "scripted.pt")
    for size in ((32, 40), (17, 24)):
        torch.testing.assert_close(scripted(images_of(*size)), model(images_of(*size)), rtol=1e-4, atol=1e-5)


def test_a_scripted_model_trains() -> None:
    model = tiny(drop_path_rate=0.5).train()
    scripted = torch.jit.script(model)
    F.cross_entropy(scripted(images_of(32, 32)), torch.tensor([1, 2])).backward()
    assert all(parameter.grad is not None for parameter in scripted.parameters())


def test_scripting_leaves_the_model_and_its_wrapper_fast() -> None:
    wrapper = nn.Sequential(tiny())
    torch.jit.script(wrapper)
    assert all(type(block) is FastXCiTLayer for block in wrapper[0].blocks)


def test_a_folded_copy_can_be_scripted() -> None:
    """Before and after its first call, which caches the folded tensors."""
    folded = xcit.fuse_for_inference(tiny())
    for _ in range(2):
        scripted = torch.jit.script(folded)
        with torch.no_grad():
            torch.testing.assert_close(scripted(images_of(32, 24)), folded(images_of(32, 24)), rtol=1e-4, atol=1e-5)
    assert all(type(block) is FoldedXCiTLayer for block in folded.blocks)


def test_a_scripted_model_says_that_an_image_is_too_small() -> None:
    with pytest.raises(torch.jit.Error, match="image of 4×32 pixels: must hold one patch of 8×8"):
        torch.jit.script(tiny())(images_of(4, 32))


@each_option
def test_a_traced_graph_is_the_plain_form_bit_for_bit(options: dict) -> None:
    model = tiny(**options)
    traced = torch.fx.symbolic_trace(model)
    for size in ((32, 40), (17, 24)):
        with torch.no_grad(), forced("plain"):
            assert torch.equal(traced(images_of(*size)), model(images_of(*size)))
        torch.testing.assert_close(traced(images_of(*size)), model(images_of(*size)), rtol=1e-4, atol=1e-5)


def test_a_traced_graph_can_be_scripted() -> None:
    model = tiny()
    scripted = torch.jit.script(torch.fx.symbolic_trace(model))
    torch.testing.assert_close(scripted(images_of(32, 40)), model(images_of(32, 40)), rtol=1e-4, atol=1e-5)


def test_a_folded_copy_can_be_traced() -> None:
    folded = xcit.fuse_for_inference(tiny())
    with torch.no_grad():
        before = folded(images_of(32, 40))
        traced = torch.fx.symbolic_trace(folded)
        torch.testing.assert_close(traced(images_of(32, 24)), folded(images_of(32, 24)), rtol=1e-4, atol=1e-5)
        assert torch.equal(folded(images_of(32, 40)), before), "tracing leaves no symbols in its cache"


def test_torchvisions_feature_extractor_returns_the_layers_outputs() -> None:
    model = tiny()
    extractor = create_feature_extractor(model, {"blocks.0": "first", "blocks.1": "second"})
    found = extractor(images_of(24, 32))
    expected = model.forward_intermediates(images_of(24, 32), [0, 1], output_fmt="NLC", intermediates_only=True)
    for tokens, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(tokens, other, rtol=1e-4, atol=1e-4)


def test_torchvisions_feature_extractor_trains_with_stochastic_depth() -> None:
    model = tiny(drop_path_rate=0.5).train()
    extractor = create_feature_extractor(
        model, train_return_nodes=["blocks.1", "head"], eval_return_nodes=["blocks.1", "head"]
    )
    tokens = [extractor(images_of(24, 32))["blocks.1"] for _ in range(8)]
    assert any(not torch.allclose(tokens[0], other) for other in tokens[1:]), "each call draws new masks"
    extractor(images_of(24, 32))["head"].sum().backward()
    assert all(parameter.grad is not None for parameter in extractor.parameters())
