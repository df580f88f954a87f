"""scripts/sweep.py searches settings with Optuna. A second call continues with the same trials."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

import scripts.training_runs
from scripts.sweep import read_range
from xcit.storage import write_tensors

from ..conftest import TINY, Result, launch

Command = Callable[..., Result]
SCRIPT = "scripts/sweep.py"


def test_ranges_and_choices_are_read() -> None:
    assert read_range("optim.lr=1e-4..1e-2:log") == ("optim.lr", FloatDistribution(1e-4, 1e-2, log=True))
    assert read_range("model.drop_path_rate=0..0.3") == ("model.drop_path_rate", FloatDistribution(0.0, 0.3))
    assert read_range("train.epochs=2..8") == ("train.epochs", IntDistribution(2, 8))
    assert read_range("augment=light,deit") == ("augment", CategoricalDistribution(["light", "deit"]))


def test_the_search_follows_the_scores_and_continues_with_the_same_trials(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs are replaced by a function of the rate. One of them fails."""
    trained: list[str] = []

    def train(start: str, overrides: list[str]) -> None:
        folder = tmp_path / next(o for o in overrides if o.startswith("run_dir=")).removeprefix("run_dir=")
        lr = float(next(o for o in overrides if o.startswith("optim.lr=")).removeprefix("optim.lr="))
        trained.append(folder.name)
        if folder.name != "trial_3":
            (folder / "checkpoints").mkdir(parents=True)
            (folder / "results.json").write_text("[]")
            write_tensors(folder / "checkpoints/last.pt", {"headline": "mae", "best": abs(lr - 0.5)})

    monkeypatch.setattr(scripts.training_runs, "train", train)
    arguments = (SCRIPT, "--search", "optim.lr=0..1.0", "--trials", "30", "--folder", "out", "train.epochs=2")
    result = command(*arguments)
    assert result.status == 0, result.stderr
    rows = json.loads((tmp_path / "out/sweep.json").read_text())
    scores = [row["score"] for row in rows]
    assert scores[:-1] == sorted(scores[:-1]), "a lower mae is better"
    assert (rows[-1]["trial"], scores[-1]) == (3, None)
    late = [row["score"] for row in rows if row["trial"] >= 15]
    assert sum(late) / len(late) < 0.2, "random values would have a mean of 0.25"
    with (tmp_path / "out/sweep.csv").open() as file:
        assert [int(row["trial"]) for row in csv.DictReader(file)] == [row["trial"] for row in rows]
    assert len(trained) == 30
    assert command(*arguments).stdout == result.stdout
    assert trained[30:] == ["trial_3"], "what is finished is not trained again"


def test_optuna_is_told_the_values_that_the_runs_had(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies: list[optuna.Study] = []
    create = optuna.create_study

    def keep(**options: Any) -> optuna.Study:
        studies.append(create(**options))
        return studies[0]

    def train(start: str, overrides: list[str]) -> None:
        folder = tmp_path / next(o for o in overrides if o.startswith("run_dir=")).removeprefix("run_dir=")
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "results.json").write_text("[]")
        write_tensors(folder / "checkpoints/last.pt", {"headline": "top1", "best": 50.0})

    monkeypatch.setattr(optuna, "create_study", keep)
    monkeypatch.setattr(scripts.training_runs, "train", train)
    result = command(SCRIPT, "--search", "optim.lr=1e-7..1e-5:log", "--trials", "3", "--folder", "out")
    assert result.status == 0, result.stderr
    rows = sorted(json.loads((tmp_path / "out/sweep.json").read_text()), key=lambda row: row["trial"])
    told = [trial.params["optim.lr"] for trial in studies[0].trials]
    assert [float(row["optim.lr"]) for row in rows] == told
    assert f"{told[0]:.4g}" in result.stdout


def test_a_trial_is_a_run_of_train_py(tmp_path: Path) -> None:
    small = (*TINY, "+model.depth=1", "+model.class_depth=1", "resolutions=[16]", "train.ema_decay=null")
    result = launch(SCRIPT, "--search", "augment=light,none", "--trials", "1", "--folder", "out", *small, cwd=tmp_path)
    assert result.status == 0, result.stderr
    (row,) = json.loads((tmp_path / "out/sweep.json").read_text())
    assert (row["metric"], row["folder"], row["augment"] in ("light", "none")) == ("top1", "out/trial_0", True)
    assert f"top1 {row['score']:.2f}" in result.stdout


@pytest.mark.parametrize(
    "wrong", ["optim.lr=1", "optim.lr=2..1", "optim.lr=0..1:log", "=a,b", "augment=a,", "run_dir=a,b"]
)
def test_what_cannot_be_searched_is_refused(wrong: str, command: Command, tmp_path: Path) -> None:
    result = command(SCRIPT, "--search", wrong)
    assert (result.status, wrong in result.stderr, len(result.stderr.splitlines())) == (2, True, 1)
    assert not list(tmp_path.iterdir())
