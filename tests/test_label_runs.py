"""Runs on images with several labels, numbers and unequal classes, from train.py to the report and eval.py."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.datasets import DATASETS
from data.examples import Example, Examples
from xcit.storage import read_tensors
from xcit.tasks.load import load_task

from .conftest import Result

Command = Callable[..., Result]
SHORT = (
    *("data=digits", "data.name=squares", "data.image_size=16", "model.patch_size=8", "model.drop_path_rate=0"),
    *("train.global_batch_size=32", "train.epochs=2", "resolutions=[16]"),
)


class Squares:
    """Gray squares on black. Two labels: is it bright, and is it on the left? Two numbers: its brightness and place."""

    kind = "class"

    def __init__(self, *, train_fraction: float = 1.0) -> None:
        pass

    def train(self) -> Examples:
        return SquareImages(self.kind, 0, 160)

    def val(self, classes: list[str] | None = None) -> Examples:
        return SquareImages(self.kind, 160, 64)


class SquareImages(Examples):
    def __init__(self, kind: str, first: int, count: int) -> None:
        self.target_kind, self.first, self.count = kind, first, count
        self.classes = {
            "class": ["dark", "bright"],
            "classes": ["bright", "left"],
            "values": ["brightness", "place"],
        }[kind]

    def __len__(self) -> int:
        return self.count

    @property
    def class_counts(self) -> np.ndarray | None:
        return np.bincount([self[index].target for index in range(len(self))])

    def __getitem__(self, index: int) -> Example:
        random = np.random.default_rng(self.first + index)
        brightness, place = int(random.integers(40, 256)), int(random.integers(0, 9))
        pixels = np.zeros((16, 16, 3), dtype=np.uint8)
        pixels[4:12, place : place + 8] = brightness
        target: Any = {
            "class": int(brightness > 210),  # a fifth
            "classes": np.array([brightness > 150, place < 4], dtype=np.float32),
            "values": np.array([brightness, place], dtype=np.float32),
        }[self.target_kind]
        if self.target_kind != "class" and index % 7 == 0:
            target[1] = np.nan
        return Example(Image.fromarray(pixels), target, f"square {index}", weight=0.5 if index % 2 else 1.5)


@pytest.fixture
def squares(command: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """squares("train.py", kind, "key=value", …) runs an entry point on them."""

    def call(script: str, kind: str, *arguments: str) -> Result:
        monkeypatch.setattr(Squares, "kind", kind)
        monkeypatch.setitem(DATASETS, "squares", Squares)
        return command(script, *arguments)

    return call


def validations(folder: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["split"] == "val"]


def table_of(folder: Path, name: str = "per_class") -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "predictions" / "16_raw" / f"{name}.csv").open()))


@pytest.mark.parametrize(
    ("task", "kind", "headline", "at_least"), [("multilabel", "classes", "map", 60.0), ("regress", "values", "r2", 0.1)]
)
def test_labels_and_numbers_are_learnt_and_evaluated(
    task: str, kind: str, headline: str, at_least: float, squares: Command, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    mixed = ("augment.mixup=0.2", "train.epochs=6")
    done = squares("train.py", kind, *SHORT, f"task={task}", *mixed, f"run_dir={run}")
    assert done.status == 0, done.stderr
    (row,) = [row for row in json.loads((run / "results.json").read_text()) if row["weights"] == "raw"]
    last = [row for row in validations(run) if row["weights"] == "raw"][-1]
    assert row[headline] == pytest.approx(last[headline]) and row[headline] > at_least
    assert (run / f"{headline}_vs_resolution.png").is_file() and f"best.pt: {headline} " in done.stdout
    assert [entry["class"] for entry in table_of(run)] == SquareImages(kind, 0, 1).classes

    # What a prediction needs is saved.
    loaded = load_task(run, "raw")
    assert loaded.classes == SquareImages(kind, 0, 1).classes
    if task == "multilabel":
        assert loaded.task.thresholds.tolist() == pytest.approx([float(entry["threshold"]) for entry in table_of(run)])
        assert 0.5 not in loaded.task.thresholds
        assert row["macro_f1"] == pytest.approx(last["macro_f1"]), "with the thresholds of the last validation"
    else:
        targets = np.stack([SquareImages("values", 0, 160)[index].target for index in range(160)])
        assert loaded.task.mean.tolist() == pytest.approx(np.nanmean(targets, axis=0).tolist())
        assert loaded.task.std.tolist() == pytest.approx(np.nanstd(targets, axis=0).tolist())

    export = ("format=torch", "weights=raw", "images=16", f"run_dir={tmp_path / 'exported'}")
    exported = squares("scripts/export.py", kind, f"checkpoint={run}", *export)
    assert exported.status == 0, exported.stderr
    described = json.loads((tmp_path / "exported" / "model.json").read_text())
    if task == "multilabel":
        thresholds = loaded.task.thresholds.tolist()
        assert described["answers"] == {"kind": "classes", "formula": "sigmoid(output)", "thresholds": thresholds}
        assert described["check"]["same_labels"] == described["check"]["images"] == 16
    else:
        numbers = {"mean": loaded.task.mean.tolist(), "std": loaded.task.std.tolist()}
        assert described["answers"] == {"kind": "values", "formula": "output * std + mean", **numbers}

    evaluated = squares("eval.py", kind, f"checkpoint={run}", "weights=raw", f"run_dir={tmp_path / 'eval'}")
    assert evaluated.status == 0, evaluated.stderr
    (again,) = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert {key: again[key] for key in (headline, "loss")} == pytest.approx(
        {k: row[k] for k in (headline, "loss")}, rel=1e-3
    )


def test_the_selected_metric_chooses_the_best_checkpoint_and_a_resume_with_another_one_says_so(
    squares: Command, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    weighted = ("task.loss=focal", "task.class_weights=balanced", "train.select=loss", "train.keep_best=2")
    done = squares("train.py", "class", *SHORT, *weighted, f"run_dir={run}")
    assert done.status == 0, done.stderr
    losses = {
        row["epoch"]: min(other["loss"] for other in validations(run) if other["epoch"] == row["epoch"])
        for row in validations(run)
    }
    best = read_tensors(run / "checkpoints" / "best.pt")
    assert (best["headline"], best["best"]) == ("loss", min(losses.values()))
    assert best["epoch"] == min(losses, key=lambda epoch: losses[epoch])
    assert sum(int(entry["images"]) for entry in table_of(run)) == 64
    assert [entry[r"true \ predicted"] for entry in table_of(run, "confusion")] == ["dark", "bright"]

    same = squares("train.py", "class", f"resume={run}", "train.epochs=3", f"run_dir={tmp_path / 'same'}")
    assert same.status == 0 and "was chosen by" not in same.stderr
    content = read_tensors(tmp_path / "same" / "checkpoints" / "last.pt")
    assert content["best"] <= best["best"] and len(content["best_scores"]) == 2, "the best survives a resume"

    other = squares(
        "train.py", "class", f"resume={run}", "train.epochs=3", "train.select=macro_f1", f"run_dir={tmp_path / 'other'}"
    )
    assert "its best.pt was chosen by loss, and is chosen by macro_f1 now" in other.stderr
    content = read_tensors(tmp_path / "other" / "checkpoints" / "last.pt")
    assert (content["headline"], list(content["best_scores"])) == ("macro_f1", [3])
    assert (tmp_path / "other" / "macro_f1_vs_resolution.png").is_file()


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("class", ["train.select=macro_f2"], "train.select=macro_f2: unknown; did you mean macro_f1? (one of top1, "),
        ("classes", ["task=multilabel", "train.select=top1"], "train.select=top1: unknown (one of map, macro_f1, "),
        ("class", ["task.class_weights=[1,2,3]"], "task.class_weights: holds 3 weights; the data have 2"),
        (
            "values",
            ["task=regress", "augment.label_smoothing=0.1"],
            "augment.label_smoothing=0.1: must be 0 with task=",
        ),
        (
            "values",
            ["task=classify"],
            "task=classify: learns from targets of kind class; those of data=squares are val",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    kind: str, arguments: list[str], message: str, squares: Command, tmp_path: Path
) -> None:
    refused = squares("train.py", kind, *SHORT, *arguments, f"run_dir={tmp_path / 'run'}")
    assert (refused.status, refused.stderr.count("error: ")) == (2, 1)
    assert message in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_batch_is_drawn_with_its_labels(squares: Command, tmp_path: Path) -> None:
    drawn = squares("scripts/show_batch.py", "classes", *SHORT, "task=multilabel", f"run_dir={tmp_path / 'batch'}")
    assert drawn.status == 0, drawn.stderr
    assert (tmp_path / "batch" / "batch.png").is_file()
