"""Weights for another number of classes load without their classifier, with a notice; other mismatches are errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import xcit

from ..models.examples import moved, same, snapshot, tiny

pytestmark = pytest.mark.filterwarnings("error::xcit.Notice")


def states(model: xcit.XCiT) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(backbone, classifier)."""
    state = snapshot(model)
    head = {key: value for key, value in state.items() if key.startswith("head.")}
    return {key: value for key, value in state.items() if key not in head}, head


@contextmanager
def refused(model: torch.nn.Module) -> Iterator[pytest.ExceptionInfo]:
    """Loading raises an InputError, and the model is unchanged."""
    before = snapshot(model)
    with pytest.raises(xcit.InputError) as caught:
        yield caught
    assert same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("here", "there", "notice"),
    [
        (
            7,
            5,
            "its classifier of 5 classes is not loaded; the model's classifier of 7 classes stays newly initialized",
        ),
        (0, 5, "its classifier of 5 classes is not loaded; the model has none"),
        (7, 0, "has no classifier; the model's classifier of 7 classes stays newly initialized"),
    ],
)
def test_the_classifier_stays_and_a_notice_says_so(here: int, there: int, notice: str) -> None:
    model = tiny(num_classes=here)
    _, head = states(model)
    source = moved(tiny(num_classes=there).state_dict(), 0.5)
    with pytest.warns(xcit.Notice) as notices:
        xcit.load_weights(model, source)
    assert [str(one.message) for one in notices] == [f"the state dict: {notice}"]
    backbone, kept = states(model)
    assert same(kept, head)
    assert same(backbone, {key: value for key, value in source.items() if not key.startswith("head.")})


@pytest.mark.parametrize("classes", [7, 0])
def test_the_same_number_of_classes_is_no_news(classes: int) -> None:
    model, source = tiny(num_classes=classes), moved(tiny(num_classes=classes).state_dict(), 0.5)
    xcit.load_weights(model, source)  # a notice is an error here
    assert same(model.state_dict(), source)


def test_the_classifier_of_another_model_of_timms_is_found_under_its_name() -> None:
    """ResNet's classifier is called `fc`."""
    model = xcit.create_model("timm", name="test_resnet", num_classes=7)
    classifier = model.default_cfg["classifier"]
    source = moved(xcit.create_model("timm", name="test_resnet", num_classes=5).state_dict(), 0.5)
    before = snapshot(model)
    with pytest.warns(
        xcit.Notice,
        match="its classifier of 5 classes is not loaded; the model's classifier of 7 classes",
    ):
        xcit.load_weights(model, source)
    for key, value in model.state_dict().items():
        assert torch.equal(value, (before if key.startswith(f"{classifier}.") else source)[key]), key


def without(state: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name != key}


RAW = tiny().state_dict()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (RAW | {"head.weight": torch.zeros(7, 64)}, "1 of another shape: head.weight (7×64, the model's is 7×128)"),
        (without(RAW, "norm.bias"), "1 missing: norm.bias"),
        (RAW | {"more.weight": torch.zeros(1)}, "1 unexpected: more.weight"),
        (RAW | {"norm.bias": torch.zeros(())}, "1 of another shape: norm.bias (scalar, the model's is 128)"),
        (tiny(depth=3).state_dict(), "unexpected: blocks.2.gamma1, blocks.2.gamma3, blocks.2.gamma2, …"),
        (tiny(depth=1).state_dict(), "missing: blocks.1.gamma1, blocks.1.gamma3, blocks.1.gamma2, …"),
        (tiny(lpi=False).state_dict(), "missing: blocks.0.gamma3, blocks.0.norm3.weight, blocks.0.norm3.bias, …"),
        (tiny(patch_size=16).state_dict(), "patch_embed.proj.0.0.weight (16×3×3×3, the model's is 32×3×3×3)"),
    ],
    ids=["head of another width", "missing", "unexpected", "scalar", "deeper", "shallower", "no LPI", "patch"],
)
def test_whatever_else_differs_is_listed_and_changes_nothing(content: dict, told: str) -> None:
    model = tiny()
    with refused(model) as caught:
        xcit.load_weights(model, moved(content, 0.5))
    lines = str(caught.value).splitlines()
    assert lines[0] == "the state dict: belongs to another architecture"
    assert any(told in line for line in lines[1:]), lines
    assert len(lines) <= 4


def test_another_number_of_classes_does_not_excuse_another_difference() -> None:
    model = tiny()
    with refused(model) as caught:
        xcit.load_weights(model, moved(tiny(num_classes=5, depth=3).state_dict(), 0.5))
    assert "blocks.2.gamma1" in str(caught.value)


@pytest.mark.parametrize("key", ["head.bias", "head.weight"])
def test_half_a_classifier_is_not_one_for_other_classes(key: str) -> None:
    model = tiny()
    with refused(model) as caught:
        xcit.load_weights(model, moved(without(RAW, key), 0.5))
    assert f"1 missing: {key}" in str(caught.value)
