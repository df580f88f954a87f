"""A run ends early by train.patience or train.max_time, says why, and resumes to what an uninterrupted run gives."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from xcit.config.training import as_hours
from xcit.engine import distributed
from xcit.engine.length import Length
from xcit.engine.run_folder import RunFolder
from xcit.engine.stopping import TimeLimit

from ..conftest import TINY, Result
from .small_run import UPDATES, assert_same_run, go_on, interrupt
from .toy import ToyLoader, ToyTask, run

PATIENT: dict[str, Any] = {"length": Length(epochs=9, patience=2), "scores": [3.0, 5.0, 4.0, 5.0, 9.0]}
"""Of the first four epochs the second is the best one: an equal score is no better one."""


def saved(path: Path) -> dict[str, Any]:
    return torch.load(RunFolder(path).last, weights_only=True)


def test_a_run_ends_after_validations_without_a_better_one_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go_on(tmp_path / "run", **PATIENT)
    assert (saved(tmp_path / "run")["epoch"], saved(tmp_path / "run")["best"]) == (4, 5.0)
    assert (
        f"train.patience=2: top1 has not improved since epoch 2, so the run ended after update {4 * UPDATES} of "
        f"{9 * UPDATES}\n"
    ) in capsys.readouterr().err


@pytest.mark.parametrize("moment", [UPDATES, 3 * UPDATES + 4, 4 * UPDATES + 2])
def test_the_validations_are_counted_across_a_resume(moment: int, tmp_path: Path) -> None:
    """Stopped after a validation, within the fourth epoch, and right before the last validation."""
    go_on(tmp_path / "whole", **PATIENT)
    interrupt(tmp_path / "run", moment, **PATIENT)
    go_on(tmp_path / "run", **PATIENT)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    go_on(tmp_path / "run", **PATIENT)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    go_on(tmp_path / "run", **PATIENT | {"length": Length(epochs=5, patience=3)})
    assert (saved(tmp_path / "run")["epoch"], saved(tmp_path / "run")["best"]) == (5, 9.0)


def test_lower_errors_are_better(tmp_path: Path) -> None:
    scores = iter([0.5, 0.4, 0.3, 0.6, 0.5, 0.1])
    state, _ = run(
        tmp_path,
        ToyLoader(1),
        epochs=6,
        patience=2,
        select="mae",
        measure=lambda task: {"score": 1.0, "mae": next(scores)},
    )
    assert (state.epoch, state.best) == (5, 0.3)


def test_a_run_ends_when_its_time_is_over_and_a_resume_continues_it_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go_on(tmp_path / "whole")
    for number in (1, 2):
        go_on(tmp_path / "run", max_time=1e-9)
        assert (saved(tmp_path / "run")["step"], saved(tmp_path / "run")["best"]) == (number, None)
        assert (
            f"note: train.max_time: the time of 0 s is over, so the run ended after update {number} of {2 * UPDATES}; "
            in capsys.readouterr().err
        )
    go_on(tmp_path / "run", max_time=1000.0)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


class Thresholded(ToyTask):
    def fit_to_validation(self, evaluator: object) -> None:
        """Chooses something."""


def test_a_run_that_ends_within_an_epoch_says_that_thresholds_are_older(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "what validations choose, such as thresholds, is from before this epoch"
    for task, says in ((ToyTask(), False), (Thresholded(), True)):
        run(tmp_path / str(says), ToyLoader(2), task=task, max_time=1e-9)
        assert (line in capsys.readouterr().err) is says


def test_the_time_of_any_process_counts_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count()
    monkeypatch.setattr("time.monotonic", lambda: float(next(seconds)))
    limit = TimeLimit(2.5 / 3600)  # it ends at 2.5, and the clock is asked at 1, 2, 3 …
    assert [limit.is_over() for _ in range(3)] == [False, False, True]
    assert not TimeLimit(None).is_over()
    monkeypatch.setattr(distributed, "greatest", lambda own: 1)
    assert TimeLimit(1.0).is_over()


def test_hours_are_numbers_or_times() -> None:
    assert [as_hours(value) for value in (1.5, "1:30:00", "1:30", "0:00:36", None)] == [1.5, 1.5, 1.5, 0.01, None]
    for wrong in ("1.5 h", "1:75", "90m"):
        with pytest.raises(ValueError, match="must be a number of hours"):
            as_hours(wrong)


def test_runs_that_end_early_are_evaluated_and_continued_elsewhere(
    command: Callable[..., Result], tmp_path: Path
) -> None:
    """One epoch of the digits has 11 updates. The rate of 1e-30 leaves the weights, and so the score, as they are."""
    small = (*TINY, "+model.depth=1", "+model.class_depth=1", "resolutions=[16]", "train.ema_decay=null")
    result = command("train.py", *small, "train.epochs=3", "train.max_time=0:00", "run_dir=run")
    assert (result.status, "train.max_time=0:00: must be" in result.stderr) == (2, True)
    result = command("train.py", *small, "train.epochs=3", "train.max_time=1e-9", "run_dir=run")
    assert result.status == 0, result.stderr
    assert "best.pt: none, because no epoch was finished" in result.stdout
    assert (tmp_path / "run" / "results.json").exists()
    more = (
        "train.max_time=null",
        "train.patience=1",
        "optim.warmup_epochs=1",
        "optim.lr=1e-30",
        "optim.min_lr=1e-30",
        "optim.warmup_lr=1e-30",
    )
    result = command("train.py", "resume=run", "run_dir=more", *more, "train.freeze_batchnorm=true")
    assert result.status == 0, result.stderr
    assert (
        "train.patience=1: top1 has not improved since epoch 1, so the run ended after update 22 of 33" in result.stderr
    )
    result = command("train.py", "resume=more")
    assert result.status == 0, result.stderr
    assert "its run is finished" in result.stderr
