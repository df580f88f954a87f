"""Weights convert between the authors' files, timm's models and ours, bit for bit, in all 14 architectures."""

from pathlib import Path

import pytest
import timm
import torch
from timm.models.xcit import checkpoint_filter_fn
from torch import Tensor, nn

import xcit
from scripts.parity import pair, timm_name
from xcit.weights.formats import to_authors_names, to_timm_names

from ..models.examples import authors_state, same

ARCHITECTURES = [(name, patch_size) for name in xcit.list_models() for patch_size in (16, 8)]


def uninitialized(name: str, patch_size: int) -> tuple[nn.Module, nn.Module]:
    """(timm's model, ours), built on the meta device, which needs no memory."""
    with torch.device("meta"):
        return timm.create_model(timm_name(name, patch_size)), xcit.create_model(name, patch_size=patch_size)


@torch.no_grad()
def random_state(model: nn.Module) -> dict[str, Tensor]:
    """A state dict with different numbers in each tensor, including BatchNorm's counters."""
    generator = torch.Generator().manual_seed(0)
    state = model.to_empty(device="cpu").state_dict()
    for number, value in enumerate(state.values()):
        if value.is_floating_point():
            value.uniform_(-1, 1, generator=generator)
        else:
            value.fill_(number)
    return dict(state)


@pytest.mark.parametrize(("name", "patch_size"), ARCHITECTURES)
def test_an_authors_file_of_timms_model_is_ours_to_the_bit_and_back(name: str, patch_size: int, tmp_path: Path) -> None:
    theirs, ours = uninitialized(name, patch_size)
    expected = random_state(theirs)
    published = authors_state(expected)

    assert same(to_timm_names(published), expected)
    assert same(to_authors_names(expected), published)

    path = tmp_path / "published.pth"
    torch.save({"model": published}, path)
    ours.to_empty(device="cpu")
    xcit.load_weights(ours, path)
    path.unlink()
    assert same(ours.state_dict(), expected)

    theirs.to(device="meta").load_state_dict(ours.state_dict(), strict=True, assign=True)
    assert same(theirs.state_dict(), expected)


@pytest.mark.parametrize(("name", "patch_size"), [("xcit_n12", 8), ("xcit_t12", 16), ("xcit_t24", 8)])
def test_an_authors_file_of_timms_model_makes_the_same_function(name: str, patch_size: int, tmp_path: Path) -> None:
    theirs, _ = pair(name, patch_size)
    torch.save({"model": authors_state(theirs.state_dict())}, tmp_path / "published.pth")
    ours = xcit.create_model(name, patch_size=patch_size).eval()
    xcit.load_weights(ours, tmp_path / "published.pth")
    images = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_timm_reads_the_authors_names_as_we_do() -> None:
    theirs, _ = pair("xcit_n12", 16)
    published = authors_state(theirs.state_dict())
    assert same(to_timm_names(published), checkpoint_filter_fn({"model": published}, theirs))


def test_our_weights_make_the_same_function_in_timm() -> None:
    _, ours = pair("xcit_n12", 16)
    theirs = timm.create_model("xcit_nano_12_p16_224").eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(theirs(images), ours(images), rtol=1e-4, atol=1e-4)
