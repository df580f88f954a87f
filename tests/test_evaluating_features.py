"""eval.py evaluate=knn, linear and retrieval measure the frozen features of any checkpoint."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

import xcit
from data.datasets import DATASETS
from data.datasets.digits import Digits
from data.examples import Examples
from xcit.storage import read_tensors

from .conftest import TINY, Result, call_here, launch_forks

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains a tiny run for an epoch. Returns its folder."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    result = call_here(
        "train.py", *TINY, "+model.depth=1", "train.ema_decay=0.9", f"run_dir={folder}", cwd=folder.parent
    )
    assert result.status == 0, result.stderr
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "results.json").read_text())


def metrics(row: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the time, the memory or the file."""
    return {
        key: value for key, value in row.items() if key not in ("images_per_second", "peak_memory_mb", "checkpoint")
    }


@torch.no_grad()
def digit_features(run: Path, kind: str) -> Iterator[tuple[Tensor, np.ndarray]]:
    """The features that the classifier gets, and the labels: of the training split, then of the validation split."""
    model, preprocessing, _ = xcit.load(run, kind)
    for split in (Digits().train(), Digits().val()):
        examples = [split[index] for index in range(len(split))]
        tokens = model.forward_features(preprocessing([example.image for example in examples]))
        yield tokens[:, 0], np.array([example.target for example in examples])


@pytest.mark.parametrize("kind", ["raw", "ema"])
def test_knn_is_that_of_scikit_learn_on_the_features_of_the_run(
    command: Command, trained: Path, tmp_path: Path, kind: str
) -> None:
    result = command("eval.py", f"checkpoint={trained}", "evaluate=knn", "evaluate.k=[20,1]", "run_dir=out")
    assert result.status == 0, result.stderr
    assert "data        1,437 training images and 360 validation images in 10 classes" in result.stderr
    assert "k-NN top-1 %" in result.stdout and "@" not in result.stdout
    assert (tmp_path / "out" / "knn_top1_vs_resolution.png").stat().st_size > 10_000
    found = rows(tmp_path / "out")
    assert [(row["resolution"], row["weights"]) for row in found] == [
        (16, "raw"),
        (16, "ema"),
        (24, "raw"),
        (24, "ema"),
    ]
    row = found[("raw", "ema").index(kind)]
    (bank, bank_labels), (queries, labels) = digit_features(trained, kind)
    oracle = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine", algorithm="brute")
    expected = 100 * oracle.fit(bank.numpy(), bank_labels).score(queries.numpy(), labels)
    assert row["knn_top1"] == row["knn_top1@k20"] == pytest.approx(expected, abs=0.6), "two images may be near ties"
    assert row["knn_top1"] <= row["knn_top5"] <= 100
    assert row["knn_top1@k1"] == row["knn_top5@k1"]
    assert row["images"] == 360


def test_two_processes_measure_what_one_does(command: Command, trained: Path, tmp_path: Path) -> None:
    arguments = ("eval.py", f"checkpoint={trained}", "evaluate=knn", "resolutions=[16]", "weights=raw", "batch_size=50")
    assert command(*arguments, "run_dir=one").status == 0
    result = launch_forks(*arguments, "run_dir=two", cwd=tmp_path)
    assert result.status == 0, result.stderr
    assert [metrics(row) for row in rows(tmp_path / "two")] == [metrics(row) for row in rows(tmp_path / "one")]


def test_only_the_backbone_is_loaded_from_a_run_a_file_or_another_library(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    """A run whose task has a student and a teacher, a file of weights, one without a classifier: the same features."""
    measured = ("evaluate=retrieval", "resolutions=[16]", "weights=raw")
    content = read_tensors(trained / "checkpoints" / "last.pt")
    model = {key.removeprefix("model."): value for key, value in content["task"].items()}
    headless = {key: value for key, value in model.items() if not key.startswith("head.")}
    torch.save(model, tmp_path / "bare.pth")
    torch.save(headless, tmp_path / "headless.pth")
    student = {f"student.backbone.{key}": torch.zeros_like(value) for key, value in headless.items()}
    teacher = {f"teacher.backbone.{key}": value for key, value in headless.items()}
    torch.save({**content, "task": student | teacher, "backbone": "teacher.backbone"}, tmp_path / "distilled.pt")
    of_model = ("model=xcit_n12", "model.patch_size=8", "+model.depth=1", "data=digits")
    cases = [(str(trained), ()), ("bare.pth", of_model), ("headless.pth", of_model), ("distilled.pt", ())]
    found = []
    for number, (checkpoint, others) in enumerate(cases):
        result = command("eval.py", f"checkpoint={checkpoint}", *measured, *others, f"run_dir={number}")
        assert result.status == 0, result.stderr
        (row,) = rows(tmp_path / str(number))
        found.append(metrics(row))
    assert found[1:] == [found[0]] * 3
    assert 10 < found[0]["retrieval_map"] < 100

    timm = xcit.create_model("timm", name="deit_tiny_distilled_patch16_224", num_classes=3)  # with two classifiers
    torch.save(timm.state_dict(), tmp_path / "deit.pth")
    of_timm = ("model=timm", "model.name=deit_tiny_distilled_patch16_224", "model.image_size=224", "data=digits")
    result = command("eval.py", "checkpoint=deit.pth", *of_timm, "resolutions=[32]", "evaluate=knn", "run_dir=timm")
    assert result.status == 0, result.stderr
    assert rows(tmp_path / "timm")[0]["knn_top1"] > 10


def test_the_linear_probe_learns_and_says_which_rate(command: Command, trained: Path, tmp_path: Path) -> None:
    options = ("evaluate=linear", "evaluate.features=class_and_mean", "evaluate.epochs=20", "evaluate.lr=[1e-9,0.1]")
    result = command("eval.py", f"checkpoint={trained}", *options, "resolutions=[16]", "weights=raw", "run_dir=out")
    assert result.status == 0, result.stderr
    (row,) = rows(tmp_path / "out")
    assert row["linear_lr"] == 0.1 and row["linear_top1"] == row["linear_top1@lr0.1"] > 60
    assert "evaluate    linear, class_and_mean features" in result.stderr


class Unlabelled(Digits):
    """The digits, as if nobody had labelled them."""

    def split(self, part: int) -> Examples:
        images = super().split(part)
        images.target_kind = "none"
        return images


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ("evaluate=knn", "evaluate.k=[10,2000]"),
            "evaluate.k=2000: must be at most 1437, the number of images whose classes are known",
        ),
        (("evaluate=knn", "evaluate.k=[0]"), "evaluate.k=[0]: must be a list of one or more integers of at least 1"),
        (("evaluate=knn", "evaluate.features=mean"), "evaluate.features=mean: must be class_token or class_and_mean"),
        (("evaluate=knn", "evaluate.epochs=3"), "evaluate.epochs: not a key of what is chosen"),
        (("evaluate.k=[3]",), "evaluate.k: not a key of what is chosen"),
        (("evaluate=kmeans",), "evaluate=kmeans: unknown (one of knn, linear, retrieval, task)"),
        (("evaluate=linear", "data=unlabelled"), "evaluate=linear: needs images with one class each; the targets of "),
    ],
)
def test_a_mistake_ends_in_one_line_before_the_folder_is_made(
    command: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple, line: str
) -> None:
    if "data=unlabelled" in options:
        monkeypatch.setitem(DATASETS, "digits", Unlabelled)
        options = options[:1]
    result = command("eval.py", f"checkpoint={trained}", *options, "run_dir=none")
    assert result.status == 2
    assert result.stderr.splitlines()[-1].startswith(f"error: {line}"), result.stderr
    assert not (tmp_path / "none").exists()
