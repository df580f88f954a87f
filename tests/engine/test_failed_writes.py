"""A disk that is full, read-only or gone does not end a run at once, and nothing that was measured is lost."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from xcit import storage
from xcit.engine.recorder import Recorder
from xcit.engine.run_folder import MAX_FAILURES, RunFolder
from xcit.engine.trackers import NullTracker
from xcit.errors import InputError, TrainingError, WriteError
from xcit.storage import read_tensors

from .toy import ToyLoader, run


class FullDisk:
    """Makes the checkpoints whose numbers are given fail, within torch.save as a full disk would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failing: set[int]) -> None:
        self.failing, self.saved = failing, 0
        monkeypatch.setattr(storage.torch, "save", self.save)

    def save(self, content: Any, file: Any, save: Any = storage.torch.save) -> None:
        self.saved += 1
        if self.saved in self.failing:
            file = Full(file)
        save(content, file)


class Full:
    def __init__(self, file: Any) -> None:
        self.file, self.left = file, 600

    def write(self, data: Any) -> int:
        self.left -= len(data)
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_checkpoint_that_fails_is_noted_and_the_next_one_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each epoch writes best.pt and last.pt. The second epoch's are the third and the fourth file."""
    FullDisk(monkeypatch, {3})
    state, rows = run(tmp_path, ToyLoader(1), epochs=3, scores=[1.0, 9.0, 5.0])
    folder = RunFolder(tmp_path / "run")
    notes = capsys.readouterr().err
    assert f"{folder.best}: cannot be written (No space left on device); trying again at the next checkpoint" in notes
    assert "enforce" not in notes
    assert read_tensors(folder.last)["epoch"] == 3
    assert read_tensors(folder.best)["epoch"] == 3, "the second epoch's is not there, so it is not counted"
    assert state.best == 5.0
    assert len(rows) == 6


def test_several_failures_in_a_row_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FullDisk(monkeypatch, set(range(3, 100)))
    line = rf"last\.pt: cannot be written \(No space left on device\); {MAX_FAILURES} checkpoints in a row failed"
    with pytest.raises(TrainingError, match=line):
        run(tmp_path, ToyLoader(1), epochs=9, scores=[9.0] + [1.0] * 8)
    assert read_tensors(RunFolder(tmp_path / "run").last)["epoch"] == 1, "the last complete one stays"


def test_the_last_checkpoint_of_a_run_must_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FullDisk(monkeypatch, {2, 3, 4})
    with pytest.raises(TrainingError, match="the last checkpoint of the run could not be written"):
        run(tmp_path, ToyLoader(1), epochs=1)


def test_a_run_folder_that_vanishes_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def measure(task: Any) -> dict[str, float]:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return {"score": 1.0}

    with pytest.raises(TrainingError, match=r"No such file or directory\); 3 checkpoints in a row failed"):
        run(tmp_path, ToyLoader(1), epochs=9, measure=measure)
    notes = capsys.readouterr().err
    assert notes.count("trying again at the next checkpoint") == MAX_FAILURES - 1
    assert not (tmp_path / "run").exists()


def test_rows_of_metrics_wait_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    with Recorder(path, NullTracker(), after_step=0, epochs_done=0) as recorder:
        recorder.log({"step": 1})
        path.rename(tmp_path / "away")
        for step in (2, 3):
            recorder.log({"step": step})
        with pytest.raises(OSError):
            recorder.flush()
        (tmp_path / "away").rename(path)
        recorder.log({"step": 4})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
    notes = capsys.readouterr().err
    assert (
        notes
        == f"note: {path}: cannot be written (No such file or directory); the rows are kept in memory until it can\n"
    )


def test_a_row_that_was_damaged_is_named(tmp_path: Path) -> None:
    """Only the last row may be cut off: a crash did that."""
    path = tmp_path / "metrics.jsonl"
    row = '{"step": 1, "epoch": 1, "split": "train"}\n'
    path.write_text(row + row + '{"step": 2, "ep')
    with Recorder(path, NullTracker(), after_step=9, epochs_done=9):
        assert path.read_text() == row + row
    path.write_text(row + row.replace('"step"', 'step"') + row)
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 2 is damaged"):
        Recorder(path, NullTracker(), after_step=9, epochs_done=9)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=f"{tmp_path}/gone/a.txt: cannot be written .No such file or directory"):
        storage.write_text(tmp_path / "gone" / "a.txt", "text")
