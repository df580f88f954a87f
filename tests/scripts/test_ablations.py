"""scripts/ablations.py trains the ablation and prints its table. A second call continues."""

import csv
from collections.abc import Callable
from pathlib import Path

from ..conftest import TINY, Result

Command = Callable[..., Result]
SCRIPT = "scripts/ablations.py"


def test_the_table_has_a_row_for_each_switch_and_is_not_trained_twice(command: Command, tmp_path: Path) -> None:
    arguments = ("--folder", "out", "--only", "xcit,no_lpi", *TINY, "+model.depth=1", "train.ema_decay=null")
    result = command(SCRIPT, *arguments)
    assert result.status == 0, result.stderr
    with (tmp_path / "out/ablations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["switch"] for row in rows] == ["", "model.lpi=false"]
    assert all(0 < float(row["raw top1"]) <= 100 for row in rows)
    assert rows[0]["raw loss"] != rows[1]["raw loss"]
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("last.pt")}
    assert command(SCRIPT, *arguments).stdout == result.stdout
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("last.pt")} == written


def test_a_wrong_name_or_value_is_one_line(command: Command) -> None:
    result = command(SCRIPT, "--only", "no_lip")
    assert (result.status, result.stderr.count("\n")) == (2, 1)
    assert "did you mean no_lpi" in result.stderr
    result = command(SCRIPT, "--only", "no_lpi", "--start", "torchrum")
    assert (result.status, result.stderr.splitlines()[-1][:40]) == (2, "error: --start=torchrum: cannot be run (")


def test_a_folder_with_runs_of_another_command_is_refused(command: Command) -> None:
    small = (*TINY, "+model.depth=1", "train.ema_decay=null")
    assert command(SCRIPT, "--folder", "out", "--only", "no_lpi", *small).status == 0
    result = command(SCRIPT, "--folder", "out", "--only", "no_lpi", *small, "seed=1")
    assert (result.status, result.stderr.splitlines()[-1][:46]) == (2, "error: --folder: out/no_lpi holds a run of oth")
