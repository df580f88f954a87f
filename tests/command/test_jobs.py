"""A multirun goes on after a failed job, names its jobs, and ends with a table and a status."""

from collections.abc import Callable
from pathlib import Path

import pytest

from xcit import command as commands
from xcit.errors import StoppedTrainingError, TrainingError

from ..conftest import TINY, Result

Command = Callable[..., Result]


def test_a_failed_job_does_not_end_a_multirun(command: Command, tmp_path: Path) -> None:
    result = command("train.py", "-m", *TINY, "resolutions=[16]", "train.accumulate=5,1", "name=sweep")
    assert result.status == 1
    assert "job 1: train.accumulate=5\njob 2: train.accumulate=1\n" in result.stdout
    assert "error: train.global_batch_size=128: must be a multiple of 5" in result.stderr
    table = result.stdout.partition("2 jobs, 1 failed")[2]
    first, second = table.partition("│ 2 ")[::2]
    assert "failed: train.global_batch_size=128" in " ".join(first.replace("│", " ").split())
    assert float(second.split("│")[2]) > 10
    assert len(list((tmp_path / "runs/sweep").iterdir())) == 1


@pytest.mark.parametrize("typed", ["model=xcit_n12,xcit_s13", "lr=1,2", "train.epochs=x,"])
def test_a_mistake_in_what_is_typed_ends_it_before_the_first_job(command: Command, tmp_path: Path, typed: str) -> None:
    result = command("train.py", "-m", *TINY, typed)
    assert result.status == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "job 1" not in result.stdout


def test_a_multirun_in_which_all_is_well_ends_with_status_0(command: Command) -> None:
    result = command("train.py", "-m", *TINY, "resolutions=[16]", "seed=0,1")
    assert result.status == 0
    assert "2 jobs, 0 failed" in result.stdout


def test_ctrl_c_in_training_ends_a_multirun_and_an_error_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "in_multirun", lambda: True)

    @commands.guarded
    def fails() -> None:
        raise TrainingError("the loss is not finite")

    @commands.guarded
    def stops() -> None:
        raise StoppedTrainingError("stopped by SIGINT")

    assert isinstance(fails(), commands.FailedJob)
    with pytest.raises(SystemExit) as end:
        stops()
    assert end.value.code == 1
