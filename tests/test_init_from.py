"""init_from= trains a finished run longer: its weights, EMA and head, with a new schedule and optimizer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from .conftest import TINY, Result

Command = Callable[..., Result]
SMALL = (*TINY, "+model.depth=1", "+model.class_depth=1", "resolutions=[16]", "train.ema_decay=0.9")
STILL = ("optim.lr=1e-30", "optim.min_lr=1e-30", "optim.warmup_lr=1e-30", "optim.weight_decay=0")
"""Leaves the weights as they are, so that those at the end show those at the start."""


def last(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.pt", weights_only=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def first(runs: Path, command: Command) -> Path:
    path = runs / "first"
    if not path.exists():
        result = command("train.py", *SMALL, "data.mean=[0.4,0.5,0.6]", f"run_dir={path}")
        assert result.status == 0, result.stderr
    return path


def test_a_run_starts_from_the_weights_ema_and_head_of_another_with_all_else_new(
    first: Path, command: Command, tmp_path: Path
) -> None:
    still = ("train.updates=2", *STILL, "pretrained=never_read")
    result = command("train.py", *SMALL, *still, f"init_from={first}", "run_dir=second")
    assert result.status == 0, result.stderr
    assert f"init_from={first}: takes the place of pretrained=never_read" in result.stderr
    assert f"from init_from={first}" in result.stderr
    assert "takes the other one" not in result.stderr, "both kinds of weights are loaded"
    before, now = last(first), last(tmp_path / "second")
    assert (before["step"], now["step"], now["epoch"]) == (11, 2, 1)
    assert now["preprocessing"]["mean"] == before["preprocessing"]["mean"] == [0.4, 0.5, 0.6]
    weights = dict(before["task"])
    trained = [key for key in weights if "running" not in key and "num_batches" not in key]  # of the BatchNorms
    assert any("head" in key for key in trained)
    assert all(torch.equal(now["task"][key], weights[key]) for key in trained)
    for key in trained:  # 0.81 of the EMA and 0.19 of the weights: its decay does not warm up again
        torch.testing.assert_close(now["ema"][key], 0.81 * before["ema"][key] + 0.19 * weights[key])
    rows = [json.loads(line) for line in (tmp_path / "second/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 2, 2]
    # A resume reads no initial weights, and keeps what they said of the images.
    result = command("train.py", "resume=second", "train.updates=3", "run_dir=third")
    assert result.status == 0, result.stderr
    third = last(tmp_path / "third")
    assert (third["step"], third["preprocessing"]) == (3, now["preprocessing"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["model=xcit_t12"], "was trained with model=xcit_n12, the new run has model=xcit_t12"),
        (
            ["task=distill", "task.teacher=deit_tiny_patch16_224"],
            "was trained with task=classify, the new run has task=distill",
        ),
        (["train.ema_decay=null"], "holds an EMA, train.ema_decay asks for none"),
        (["data=folder", "recipe=digits", "data.root=two"], "was trained with 10 classes, the data have 2"),
    ],
)
def test_a_run_of_another_kind_is_refused_in_one_line(
    changed: list[str],
    message: str,
    first: Path,
    command: Command,
    tmp_path: Path,
    image_tree: Callable[..., Path],
) -> None:
    image_tree(str(tmp_path / "two"), {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    result = command("train.py", *SMALL, *changed, f"init_from={first}", "run_dir=second")
    assert (result.status, result.stderr.splitlines()[-1]) == (2, f"error: init_from={first}: {message}")
    assert "note: " not in result.stderr.replace("note: init_from=", ""), "nothing is said of weights that are not used"
    assert not (tmp_path / "second").exists()


def test_what_is_no_run_is_refused(command: Command) -> None:
    result = command("train.py", *SMALL, "init_from=fb_in1k")
    message = "init_from=fb_in1k: no such run folder or checkpoint; pretrained= takes other weights"
    assert (result.status, result.stderr.splitlines()[-1]) == (2, f"error: {message}")
