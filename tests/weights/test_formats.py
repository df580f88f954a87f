"""Finds weights in every layout that training scripts use."""

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from timm.utils import ModelEmaV3

import xcit
from xcit.checkpoint import LAST
from xcit.engine.numerics import grad_scaler
from xcit.engine.state import TrainingState
from xcit.storage import read_tensors, write_safetensors, write_tensors
from xcit.tasks import TASKS
from xcit.weights.loading import weights_at

from ..models.examples import authors_state, moved, same, snapshot, tiny

pytestmark = pytest.mark.filterwarnings("error::xcit.Notice")

RAW = tiny().state_dict()
EMA = moved(RAW, 0.25)
LOADED = "has raw weights and their moving average; the moving average is loaded"  # if the caller names neither


def loaded(source: Any, kind: str | None = None) -> dict[str, torch.Tensor]:
    """The state dict of a model after loading. A notice fails the test."""
    model = tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(5)
    xcit.load_weights(model, source, kind)
    return model.state_dict()


def with_prefix(state: dict[str, torch.Tensor], prefix: str = "module.") -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    "content",
    [
        RAW,
        with_prefix(RAW),
        authors_state(RAW),
        {"model": RAW},
        {"model": with_prefix(authors_state(RAW)), "optimizer": {"state": {}}, "epoch": 3},
        {"state_dict": RAW, "arch": "xcit"},
        {"state_dict": with_prefix(RAW)},
        {"model": RAW, "model_ema": None},
    ],
    ids=["bare", "DDP", "authors", "model", "authors, DDP", "state_dict", "state_dict, DDP", "no EMA kept"],
)
def test_every_wrapping_is_taken_off(content: dict, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    assert same(loaded(tmp_path / "weights.pth"), RAW)
    assert same(loaded(str(tmp_path / "weights.pth"), "raw"), RAW)
    assert same(loaded(content), RAW)


@pytest.mark.parametrize(("raw", "ema"), [("model", "model_ema"), ("state_dict", "state_dict_ema")])
@pytest.mark.parametrize("form", [dict, authors_state, with_prefix])
def test_the_moving_average_is_taken_where_there_is_one(raw: str, ema: str, form: Any, tmp_path: Path) -> None:
    torch.save({raw: form(RAW), ema: form(EMA)}, tmp_path / "both.pth")
    with pytest.warns(xcit.Notice, match=LOADED):
        assert same(loaded(tmp_path / "both.pth"), EMA)
    assert same(loaded(tmp_path / "both.pth", "ema"), EMA)
    assert same(loaded(tmp_path / "both.pth", "raw"), RAW)


def test_an_average_that_is_not_there_is_named(tmp_path: Path) -> None:
    torch.save({"model": RAW}, tmp_path / "raw.pth")
    with pytest.raises(xcit.InputError, match=r"weights=ema: .*raw\.pth has only raw weights"):
        xcit.load_weights(tiny(), tmp_path / "raw.pth", "ema")


def test_the_authors_training_checkpoint_loads(tmp_path: Path) -> None:
    """It also contains the arguments of the command, as an argparse.Namespace."""
    arguments = argparse.Namespace(model="xcit_nano_12_p8", lr=5e-4, output_dir=None, distributed=True)
    content = {"model": authors_state(RAW), "model_ema": authors_state(EMA), "args": arguments, "epoch": 399}
    torch.save(content | {"optimizer": {"state": {}, "param_groups": []}}, tmp_path / "checkpoint.pth")
    assert same(loaded(tmp_path / "checkpoint.pth", "raw"), RAW)


def test_safetensors_load(tmp_path: Path) -> None:
    safetensors.torch.save_file(RAW, tmp_path / "theirs.safetensors")
    write_safetensors(tmp_path / "ours.safetensors", authors_state(RAW))
    assert same(loaded(tmp_path / "theirs.safetensors"), RAW)
    assert same(loaded(tmp_path / "ours.safetensors"), RAW)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x10\0\0\0\0\0\0\0{"])
def test_damaged_safetensors_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(content)
    with pytest.raises(xcit.InputError, match=r"cut\.safetensors: not a file of weights"):
        xcit.load_weights(tiny(), tmp_path / "cut.safetensors")


def test_weights_of_half_precision_load_as_the_models(tmp_path: Path) -> None:
    half = {key: value.half() if value.is_floating_point() else value for key, value in RAW.items()}
    torch.save(half, tmp_path / "half.pth")
    state = loaded(tmp_path / "half.pth")
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(state[key], half[key].to(state[key].dtype)) for key in state)


def a_run(folder: Path, *, ema: bool, validated: dict[str, float] | None = None) -> Path:
    """A run folder with its last checkpoint, written by the code that training uses."""
    task = TASKS["classify"](tiny(), 7)
    average = ModelEmaV3(task, decay=0.9) if ema else None
    if average:
        average.module.model.load_state_dict(EMA)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    state = TrainingState(task, optimizer, grad_scaler(torch.device("cpu"), "fp32"), average, {"classes": ["a"]})
    state.validated = validated or {}
    (folder / LAST).parent.mkdir(parents=True)
    write_tensors(folder / LAST, state.state_dict())
    return folder


@pytest.mark.parametrize("what", [".", LAST])
def test_a_run_gives_its_average_or_what_it_trained(what: str | Path, tmp_path: Path) -> None:
    source = a_run(tmp_path / "run", ema=True) / what
    with pytest.warns(xcit.Notice, match=LOADED):
        assert same(loaded(source), EMA)
    assert same(loaded(source, "ema"), EMA)
    assert same(loaded(source, "raw"), RAW)


@pytest.mark.parametrize(("raw", "ema", "better"), [(90.0, 89.0, RAW), (90.0, 90.0, EMA), (89.0, 90.0, EMA)])
def test_a_run_gives_the_weights_that_did_better_in_its_last_validation(
    raw: float, ema: float, better: dict, tmp_path: Path
) -> None:
    source = a_run(tmp_path / "run", ema=True, validated={"raw": raw, "ema": ema})
    loads, other = ("the raw weights are", "ema") if better is RAW else ("the moving average is", "raw")
    with pytest.warns(xcit.Notice, match=f"{loads} loaded; kind='{other}' of load_weights takes the other one") as told:
        assert same(loaded(source), better)
    assert len(told) == 1


def test_an_average_that_lags_behind_is_told_of(tmp_path: Path) -> None:
    source = a_run(tmp_path / "run", ema=True, validated={"raw": 95.83, "ema": 25.0})
    lag = r"last\.pt: the moving average lags behind the raw weights: top1 25\.00 instead of 95\.83 in the last"
    with pytest.warns(xcit.Notice) as told:
        assert same(loaded(source), RAW)
    assert {notice.filename for notice in told} == {__file__}, "the line that loads, not the library's"
    first, second = (str(notice.message) for notice in told)
    assert re.search(lag, first) and "the raw weights are loaded" in second
    with pytest.warns(xcit.Notice, match=lag) as told:
        assert same(loaded(source, "ema"), EMA)
    assert len(told) == 1
    weights = weights_at(source / LAST, read_tensors(source / LAST))
    assert weights.better() == "raw", "to ask is not to load: it warns of nothing"
    assert same(loaded(source, "raw"), RAW)


def test_a_run_without_an_average_gives_what_it_trained(tmp_path: Path) -> None:
    source = a_run(tmp_path / "run", ema=False)
    assert same(loaded(source), RAW)
    with pytest.raises(xcit.InputError, match=r"weights=ema: .*last\.pt has only raw weights"):
        xcit.load_weights(tiny(), source, "ema")


def test_a_folder_of_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(xcit.InputError, match=r"holds neither a run's .*last\.pt nor model\.safetensors"):
        xcit.load_weights(tiny(), tmp_path)


def test_dino_gives_the_teachers_backbone(tmp_path: Path) -> None:
    """The published accuracies are the teacher's. Loading the student's weights gives no error (dino#79)."""
    backbone = authors_state(tiny(num_classes=0).state_dict())
    student, teacher = moved(backbone, 0.5), moved(backbone, 0.25)
    projection = {"head.mlp.0.weight": torch.ones(3, 128), "head.last_layer.weight_g": torch.ones(3, 1)}
    content = {
        "student": with_prefix(with_prefix(student, "backbone.") | projection),
        "teacher": with_prefix(teacher, "backbone.") | projection,
        "args": argparse.Namespace(arch="xcit_small_12_p16"),
        "dino_loss": {"center": torch.zeros(1, 3)},
    }
    torch.save(content, tmp_path / "dino_full.pth")
    without_head = tiny(num_classes=0)
    xcit.load_weights(without_head, tmp_path / "dino_full.pth")
    assert same(authors_state(without_head.state_dict()), teacher)

    classifier = tiny()
    head = {key: value for key, value in snapshot(classifier).items() if key.startswith("head.")}
    with pytest.warns(xcit.Notice, match="has no classifier; the model's classifier of 7 classes stays newly"):
        xcit.load_weights(classifier, content)
    assert same(authors_state(classifier.state_dict()), teacher | head)


def test_the_published_backbone_of_dino_is_a_bare_state(tmp_path: Path) -> None:
    backbone = tiny(num_classes=0).state_dict()
    torch.save(authors_state(backbone), tmp_path / "xcit_small_12_cp16_dino.pth")
    model = xcit.create_model("xcit_n12", depth=2, patch_size=8, num_classes=0)
    xcit.load_weights(model, tmp_path / "xcit_small_12_cp16_dino.pth")
    assert same(model.state_dict(), backbone)


@pytest.mark.parametrize("content", [{}, {"model": {}}, {"epoch": 3}, {"model": {"a": 1}}, {"model": "xcit"}])
def test_a_file_without_weights_is_refused(content: dict, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "nothing.pth")
    with pytest.raises(xcit.InputError, match=r"nothing\.pth: (holds no state dict|belongs to another)"):
        xcit.load_weights(tiny(), tmp_path / "nothing.pth")
