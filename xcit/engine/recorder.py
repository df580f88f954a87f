"""Writes measurements to metrics.jsonl and to the chosen tracker."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..storage import without_nan, write_text
from .trackers import Tracker


class Recorder:
    """Rows of metrics: {"step", "epoch", "split": "train" or "val", …}; floats at full precision, NaN as null.

    A resume drops the rows after the checkpoint's step, and the validations of epochs that the checkpoint has not
    done. The file is then what an uninterrupted run would have written.
    """

    def __init__(self, path: Path, tracker: Tracker, *, after_step: int, epochs_done: int) -> None:
        self.tracker = tracker
        if path.exists():
            write_text(path, "".join(line + "\n" for line in kept_lines(path, after_step, epochs_done)))
        self.file = path.open("a", buffering=1)  # a line at a time

    def log(self, row: dict[str, Any]) -> None:
        finite = without_nan(row)
        self.file.write(json.dumps(finite) + "\n")
        self.tracker.log(finite)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.file.close()
        self.tracker.close()


class NullRecorder(Recorder):
    """For all processes but the main one: records nothing."""

    def __init__(self) -> None:
        pass

    def log(self, row: dict[str, Any]) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        pass


def kept_lines(path: Path, after_step: int, epochs_done: int) -> list[str]:
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # a crash cut this line off
            break
        if row["step"] <= after_step and (row["split"] == "train" or row["epoch"] <= epochs_done):
            kept.append(line)
    return kept
