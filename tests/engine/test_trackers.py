"""Every tracker records the metrics. A failing tracker never stops a run."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from xcit.engine.recorder import Recorder
from xcit.engine.trackers import NullTracker, WandbTracker, make_tracker, new_run_id

TRAIN = {"step": 1, "epoch": 1, "split": "train", "loss": 2.0, "lr": 1e-3}
VAL = {"step": 1, "epoch": 1, "split": "val", "weights": "ema", "top1": 97.123456789012345}


def tracker(name: str, folder: Path, after_step: int = 0, **given: str):
    options = {"mode": "offline", "project": "test", **given}
    return make_tracker(name, folder, after_step=after_step, run_id="abc12345", config={"seed": 0}, **options)


def test_rows_are_json_lines_at_full_precision_with_null_for_nan(tmp_path: Path) -> None:
    with Recorder(tmp_path / "metrics.jsonl", NullTracker(), after_step=0, epochs_done=0) as recorder:
        recorder.log(VAL)
        recorder.log(TRAIN | {"loss": float("nan")})
        assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2, "written as it comes"
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == VAL
    assert json.loads(lines[1])["loss"] is None


def test_a_resume_drops_rows_after_the_checkpoint_and_an_incomplete_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [TRAIN | {"step": step} for step in range(1, 6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "ep')
    with Recorder(path, NullTracker(), after_step=3, epochs_done=0) as recorder:
        recorder.log(TRAIN | {"step": 4, "loss": 9.0})
    steps = [(row["step"], row["loss"]) for row in map(json.loads, path.read_text().splitlines())]
    assert steps == [(1, 2.0), (2, 2.0), (3, 2.0), (4, 9.0)]


@pytest.mark.parametrize(("epochs_done", "kept"), [(0, ["train"]), (1, ["train", "val"])])
def test_a_resume_before_a_validation_drops_the_rows_of_that_validation(
    epochs_done: int, kept: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (TRAIN, VAL)))
    with Recorder(path, NullTracker(), after_step=1, epochs_done=epochs_done):
        pass
    assert [json.loads(line)["split"] for line in path.read_text().splitlines()] == kept


def test_csv_holds_the_logged_rows(tmp_path: Path) -> None:
    with Recorder(tmp_path / "metrics.jsonl", tracker("csv", tmp_path), after_step=0, epochs_done=0) as recorder:
        recorder.log(TRAIN)
        recorder.log(VAL)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["train", "val"]
    assert float(rows[1]["top1"]) == VAL["top1"]
    assert rows[0]["top1"] == ""


def test_tensorboard_gets_each_metric_under_its_name(tmp_path: Path) -> None:
    board = tracker("tensorboard", tmp_path)
    board.log(TRAIN)
    board.log(VAL)
    board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "train/lr", "val_ema/top1"}
    assert events.Scalars("val_ema/top1")[0].value == pytest.approx(VAL["top1"], rel=1e-6)


def test_wandb_records_offline_and_resumes_under_the_same_id(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for after_step in (0, 1):
        run = tracker("wandb", tmp_path, after_step)
        run.log(TRAIN)
        run.log(VAL)
        run.close()
    assert "warning" not in capfd.readouterr().err
    files = list(tmp_path.glob("wandb/offline-run-*/run-abc12345.wandb"))
    assert files
    wandb.teardown()  # waits until wandb's own process has written its files
    assert all(b"val_ema/top1" in file.read_bytes() for file in files)


def test_mlflow_records_and_resumes_the_same_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for step, project in ((1, {}), (2, {"project": "xcit"})):
        config = {"seed": 0, "optim": {"lr": 0.5}}
        made = make_tracker("mlflow", tmp_path, after_step=step - 1, run_id="abc12345", config=config, **project)
        made.log(TRAIN | {"step": step, "loss": 1.0 / step})
        made.log(VAL | {"step": step})
        assert made.home == {"project": "xcit"}
        made.close()
    assert "warning" not in capsys.readouterr().err
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("xcit").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "/".join(tmp_path.parts[-2:]))
    assert run.data.params == {"seed": "0", "optim.lr": "0.5"}
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")] == [(1, 1.0), (2, 0.5)]
    assert run.data.metrics["val_ema/top1"] == VAL["top1"]


@pytest.fixture
def fresh_wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """wandb reads its environment once in a process. Let it read that of this test, without the user's own."""
    for name in [name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_SERVICE"]:
        monkeypatch.delenv(name)
    wandb.teardown()
    yield
    wandb.teardown()


def wandb_run(folder: Path, **options: str) -> wandb.Run:
    made = make_tracker("wandb", folder, after_step=0, run_id="abc12345", config={}, **options).tracker
    assert isinstance(made, WandbTracker)
    made.close()
    return made.run


@pytest.mark.usefixtures("fresh_wandb")
def test_wandb_follows_its_environment_where_nothing_is_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    theirs = {"MODE": "offline", "PROJECT": "theirs", "ENTITY": "team", "NAME": "mine", "RUN_GROUP": "group"}
    for name, value in (theirs | {"TAGS": "a,b", "DIR": str(tmp_path / "elsewhere"), "RUN_ID": "chosen"}).items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    run = wandb_run(tmp_path / "run")
    assert (run.project, run.entity, run.name, run.group, run.tags) == ("theirs", "team", "mine", "group", ("a", "b"))
    assert Path(run.dir).is_relative_to(tmp_path / "elsewhere")
    assert run.offline
    assert new_run_id() == "chosen"
    # What the configuration says counts more.
    run = wandb_run(tmp_path / "run", project="ours", entity="us", mode="disabled")
    assert (run.project, run.entity, run.disabled) == ("ours", "us", True)


@pytest.mark.usefixtures("fresh_wandb")
def test_without_wandbs_environment_its_run_is_named_after_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "xcit_n12_digits" / "today"
    folder.mkdir(parents=True)
    run = wandb_run(folder)
    assert (run.project, run.name, run.offline) == ("xcit", "xcit_n12_digits/today", True)
    assert Path(run.dir).is_relative_to(folder)
    assert new_run_id() != new_run_id()


def test_a_failing_tracker_is_reported_once_and_turned_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tensorboard").write_text("a file where its folder should be")
    with Recorder(
        tmp_path / "metrics.jsonl", tracker("tensorboard", tmp_path), after_step=0, epochs_done=0
    ) as recorder:
        recorder.log(TRAIN)
        recorder.log(VAL)
    assert capsys.readouterr().err.count("warning: logger=tensorboard failed and is off from here on") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
