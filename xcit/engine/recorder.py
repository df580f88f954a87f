"""Writes measurements to metrics.jsonl and to trackers."""

import json
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import InputError, print_note
from ..storage import without_nan, write_text
from .trackers import Tracker


class Recorder:
    """Rows of metrics: {"step", "epoch", "split": "train" or "val", …}; floats at full precision, NaN as null.

    A resume drops the rows after the checkpoint's step, and the validations of epochs that the checkpoint has not
    done. The file is then what an uninterrupted run would have written.

    Rows that cannot be written are kept in memory, and are written with a later row.
    """

    def __init__(self, path: Path, *trackers: Tracker, after_step: int, epochs_done: int) -> None:
        self.path, self.trackers = path, trackers
        write_text(path, "".join(line + "\n" for line in kept_lines(path, after_step, epochs_done)))
        self.unwritten: list[str] = []
        self.failing = False

    def log(self, row: dict[str, Any]) -> None:
        finite = without_nan(row)
        self.unwritten.append(json.dumps(finite) + "\n")
        try:
            self.flush()
        except OSError as error:
            if not self.failing:  # one note for each time that writing begins to fail
                reason = error.strerror or error
                print_note(f"{self.path}: cannot be written ({reason}); the rows are kept in memory until it can")
            self.failing = True
        else:
            self.failing = False
        for tracker in self.trackers:
            tracker.log(finite)

    def flush(self) -> None:
        """Write the rows that are still in memory.

        Raises:
            OSError: The file cannot be written, or is gone.
        """
        if self.unwritten:
            # Open the file for each row: writing to a file that was removed would lose the rows in silence.
            with self.path.open("r+b") as file:
                end = file.seek(0, 2)
                try:
                    file.write("".join(self.unwritten).encode())
                    file.flush()
                except OSError:
                    file.truncate(end)  # half a row
                    raise
            self.unwritten = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with suppress(OSError):
            self.flush()
        if self.unwritten:
            print_note(f"{self.path}: {len(self.unwritten)} rows could not be written")
        for tracker in self.trackers:
            tracker.close()


class NullRecorder(Recorder):
    """For all processes but the main one: records nothing."""

    def __init__(self) -> None:
        pass

    def log(self, row: dict[str, Any]) -> None:
        pass

    def flush(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        pass


def kept_lines(path: Path, after_step: int, epochs_done: int) -> list[str]:
    """The lines of a metrics file that a run keeps when it continues after this step.

    Raises:
        InputError: A line is damaged. Only the last one may be cut off, by a crash.
    """
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            keep = row["step"] <= after_step and (row["split"] == "train" or row["epoch"] <= epochs_done)
        except (ValueError, LookupError, TypeError):
            if number == len(lines):
                break
            raise InputError(f"{path}: line {number} is damaged; mend or remove it to continue the run") from None
        if keep:
            kept.append(line)
    return kept


def epochs_begun(path: Path) -> int:
    """The last epoch of which a metrics file has a row; 0 without a row."""
    epochs = [0]
    with suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            with suppress(ValueError, LookupError, TypeError):
                epochs.append(int(json.loads(line)["epoch"]))
    return max(epochs)
