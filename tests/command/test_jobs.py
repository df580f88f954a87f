"""A multirun goes on after a failed job, names its jobs, and ends with a table and a status."""

from collections.abc import Callable
from pathlib import Path

import pytest

from xcit import command as commands
from xcit.errors import StoppedTrainingError, TrainingError

from ..conftest import TINY, Result

Command = Callable[..., Result]


def test_a_failed_job_does_not_end_a_multirun(command: Command, tmp_path: Path) -> None:
    result = command("train.py", "-m", *TINY, "resolutions=[16]", "pretrained=fb_dist,null", "name=sweep")
    assert result.status == 1
    assert "job 1: pretrained=fb_dist\n" in result.stdout
    assert "job 2: pretrained=null\n" in result.stdout
    table = result.stdout.partition("2 jobs, 1 failed")[2]
    first, second = table.partition("│ 2   │")[::2]
    assert "failed: pretrained=fb_dist: no such" in " ".join(first.replace("│", " ").split())
    (folder,) = (tmp_path / "runs/sweep").iterdir()
    cells = [line.split("│")[-3:-1] for line in second.splitlines() if "│" in line]
    score, where = ("".join(cell.strip() for cell in column) for column in zip(*cells, strict=True))
    assert score.startswith("top1 ") and float(score.removeprefix("top1 ")) > 5
    assert where == f"runs/sweep/{folder.name}"


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("model=xcit_n12,xcit_s13", "model=xcit_s13: unknown; did you mean"),
        ("lr=1,2", "lr: unknown key"),
        ("train.epochs=x,", ""),
        ("train.epochs=1,0", "train.epochs=0: must be"),
        ("optim.name=adamw,adamww", "optim.name=adamww: unknown; did you mean adamw"),
        ("model.heads=4,3", "model.heads=3: must divide"),
        ("seed=0,1 run_dir=run", "run_dir=run: jobs 1 and 2 would share this folder; leave run_dir out, or give each"),
        ("seed=interval(0,1)", "BasicSweeper does not support"),
    ],
)
def test_a_mistake_in_any_job_ends_it_before_the_first_job(
    command: Command, tmp_path: Path, typed: str, line: str
) -> None:
    result = command("train.py", "-m", *TINY, *typed.split())
    assert result.status == 2
    assert result.stderr.startswith(f"error: {line}")
    assert (result.stderr.count("\n"), result.stdout) == (1, "")
    assert not list(tmp_path.iterdir()), "not even multirun.yaml"


def test_jobs_with_folders_of_their_own(command: Command, tmp_path: Path) -> None:
    folders = "run_dir=runs/${seed}-${hydra:job.num}"
    result = command("train.py", "-m", *TINY, "model.depth=1", "resolutions=[16]", "seed=5,6", folders)
    assert result.status == 0, result.stderr
    assert "2 jobs, 0 failed" in result.stdout
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"5-0", "6-1", "multirun"}


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
