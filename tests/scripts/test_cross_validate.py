"""scripts/cross_validate.py trains a run for each fold and averages them. A second call continues."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import pytest

from ..conftest import TINY, Result

Command = Callable[..., Result]
SCRIPT = "scripts/cross_validate.py"
SMALL = (*TINY, "+model.depth=1", "recipe=digits", "data.workers=0", "train.global_batch_size=8", "resolutions=[16]")


def test_each_fold_is_trained_once_and_the_metrics_are_averaged(
    command: Command, image_tree: Callable[..., Path], tmp_path: Path
) -> None:
    root = image_tree("mine", {"cat": 12, "dog": 8})
    run = (*SMALL, "data=folder", f"data.root={root}")
    # The first fold is there already, as after an interruption. That also saves the time of a process.
    result = command("train.py", *run, "data.folds=2", "data.fold=0", "run_dir=out/fold_0", "resume=auto")
    assert result.status == 0, result.stderr
    first = (tmp_path / "out/fold_0/checkpoints/last.pt").stat().st_mtime_ns
    arguments = ("--folder", "out", "--folds", "2", *run)
    result = command(SCRIPT, *arguments)
    assert result.status == 0, result.stderr
    assert (tmp_path / "out/fold_0/checkpoints/last.pt").stat().st_mtime_ns == first
    rows = json.loads((tmp_path / "out/cross_validation.json").read_text())
    assert {(row["weights"], row["metric"]) for row in rows} >= {("raw", "top1"), ("raw", "loss"), ("ema", "top1")}
    assert rows[0]["metric"] == "top1", "the headline metric comes first"
    for row in rows:
        own = []
        for fold in range(2):
            lines = (tmp_path / f"out/fold_{fold}/metrics.jsonl").read_text().splitlines()
            found = [line for line in map(json.loads, lines) if line.get("weights") == row["weights"]]
            assert found[-1]["images"] == 10
            own.append(found[-1][row["metric"]])
        assert [row["fold_0"], row["fold_1"]] == own
        assert (row["mean"], row["std"]) == pytest.approx((mean(own), stdev(own)))
    with (tmp_path / "out/cross_validation.csv").open() as file:
        assert [row["metric"] for row in csv.DictReader(file)] == [row["metric"] for row in rows]
    assert f"{rows[0]['mean']:.3f} ± {rows[0]['std']:.3f}" in result.stdout

    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("last.pt")}
    assert command(SCRIPT, *arguments).stdout == result.stdout
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("last.pt")} == written
    result = command(SCRIPT, *arguments, "seed=1")
    assert (result.status, result.stderr.splitlines()[-1][:47]) == (
        2,
        "error: --folder: out/fold_0 holds a run of othe",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--folds", "1"), "error: --folds=1: must be at least 2\n"),
        (("data.folds=3",), "error: data.folds=3: is set by this script, see --folder and --folds\n"),
        (("run_dir=x",), "error: run_dir=x: is set by this script, see --folder and --folds\n"),
    ],
)
def test_what_the_script_sets_itself_is_refused(command: Command, arguments: tuple[str, ...], message: str) -> None:
    result = command(SCRIPT, *arguments)
    assert (result.status, result.stderr) == (2, message)
