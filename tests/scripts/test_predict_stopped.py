"""A signal stops scripts/predict.py with what was predicted until then."""

import signal
from pathlib import Path
from typing import Any

import pytest

from xcit.models.dense.mask_rcnn import Detections
from xcit.tasks.detect import Detect

from ..tasks.checkpoints import write_checkpoint
from .predicting import SCRIPT, Command, files, read


@pytest.mark.parametrize(("number", "images"), [(signal.SIGTERM, 3), (signal.SIGINT, 1)])
def test_a_signal_ends_the_command_with_what_was_predicted(
    command: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, images: int
) -> None:
    write_checkpoint(tmp_path / "run", "detect")
    predict = Detect.predict
    calls: list[int] = []

    def interrupted(*arguments: Any) -> Detections:
        calls.append(1)
        if len(calls) == images:
            signal.raise_signal(number)
            signal.raise_signal(number)  # as torchrun and terminals may do
        return predict(*arguments)

    monkeypatch.setattr(Detect, "predict", interrupted)
    result = command(SCRIPT, "photos", "checkpoint=run", "run_dir=out")
    line = f"error: stopped by {number.name}; out: predictions of {images} of 6 images"
    assert (result.status, result.stderr.splitlines()[-1]) == (1, line)
    written = read(tmp_path / "out")
    assert len(written["images"]) == images == len([name for name in files(tmp_path / "out") if "overlays/" in name])


def test_a_signal_during_the_last_prediction_stops_nothing(
    command: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "run", "detect")
    (photos / "z").mkdir()
    (photos / "z/broken.jpg").write_bytes(b"not an image")
    predict, calls = Detect.predict, []

    def interrupted(*arguments: Any) -> Detections:
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGTERM)
        return predict(*arguments)

    monkeypatch.setattr(Detect, "predict", interrupted)
    result = command(SCRIPT, "photos", "checkpoint=run", "run_dir=out")
    assert result.status == 0, result.stderr
    assert (
        result.stdout.splitlines()[-1]
        == "out: predictions of 5 images, without 2 images that cannot be read or predicted"
    )


def test_a_signal_before_the_first_prediction_writes_nothing(
    command: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "run", "classify")
    monkeypatch.setattr("xcit.tasks.load.load_task", lambda *_: signal.raise_signal(signal.SIGTERM))
    result = command(SCRIPT, "photos", "checkpoint=run", "run_dir=out")
    assert (result.status, result.stderr.splitlines()[-1]) == (1, "error: stopped by SIGTERM")
    assert not (tmp_path / "out").exists()
