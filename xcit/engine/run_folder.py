"""Creates and finds run folders. Only the main process writes."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import LAST
from ..errors import InputError, TrainingError, print_note
from ..storage import write_text
from . import distributed
from .checkpoints import Checkpoints, Score, replace_by_copy
from .recorder import Recorder, epochs_begun
from .run_lock import LOCK, RunLock
from .state import TrainingState

RUNS = Path("runs")
PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "numpy", "pillow")


DESCRIPTION = ("config.yaml", "environment.json", "classes.json")
"""What `describe` writes, in this order."""
MAX_FAILURES = 3
"""Failed checkpoints in a row after which the run ends."""


class RunFolder:
    """runs/NAME/TIMESTAMP, or what run_dir= says.

    config.yaml           the whole configuration
    environment.json      versions, host, devices, git commit, command
    classes.json          the class names, in the order of the model's outputs
    metrics.jsonl         one object a line
    checkpoints/          see checkpoints.py
    results.json          the final evaluation, and other files of the report
    run.lock              while a run lives
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.results = path / "results.json"
        self.checkpoints = Checkpoints(path / LAST.parent)
        self.last, self.best = self.checkpoints.last, self.checkpoints.best
        self.lock = RunLock(path)
        self.restart = False
        self.failures = 0
        """Checkpoints in a row that could not be written."""

    def keep(self, *, last: int, best: int) -> None:
        """Set how many of the newest and of the best checkpoints are kept."""
        self.checkpoints.keep_last, self.checkpoints.keep_best = last, best

    @property
    def holds_work(self) -> bool:
        """Whether a new run would destroy something: a checkpoint, results, or the metrics of more than one epoch."""
        return self.results.exists() or bool(self.checkpoints.all()) or epochs_begun(self.metrics) > 1

    def require_free(self, *, restart: bool = False) -> None:
        """Refuse a folder that is not empty, unless `restart` is true and its run ended before its first checkpoint."""
        self.restart = restart
        names = {path.name for path in self.path.iterdir()} - {LOCK} if self.path.is_dir() else set()
        begun = names <= set(DESCRIPTION) or {"config.yaml", "classes.json"} <= names
        begun = begun and not self.holds_work
        if names and not (restart and begun):
            run = (
                "its run has no checkpoint yet, resume=auto starts it again"
                if begun
                else "continue its run with resume="
            )
            raise InputError(f"run_dir={self.path}: is not empty; choose a new folder, or {run}")
        require_writable(self.path)

    def create(self) -> None:
        """Make the folder that `require_free` has accepted, and lock it. The folder of a resumed run is locked already.

        Raises:
            InputError: The folder cannot be made, or another run wrote to it in the meantime.
        """
        if self.lock.is_ours:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
        except OSError as error:
            with suppress(OSError):
                self.path.rmdir()
            raise InputError(f"run_dir={self.path}: cannot be made ({error.strerror})") from None
        self.require_free(restart=self.restart)

    def close(self) -> None:
        """Release the lock. Remove the folder if nothing was written to it."""
        was_ours = self.lock.is_ours
        self.lock.release()
        if was_ours:
            with suppress(OSError):
                self.path.rmdir()

    def inherit(self, other: "RunFolder", unused: Sequence[Path]) -> None:
        """Copy the metrics and the best checkpoints of the run that this one continues, without its unused ones."""
        if other.metrics.exists():
            replace_by_copy(self.metrics, other.metrics, link=False)
        self.checkpoints.folder.mkdir(exist_ok=True)
        for path in set(other.checkpoints.folder.glob("best*.pt")) - set(unused):
            replace_by_copy(self.checkpoints.folder / path.name, path, link=False)

    def describe(self, config_yaml: str, classes: list[str] | None = None) -> None:
        """Write config.yaml, environment.json and classes.json; remove files that a killed run left half-written."""
        for leftover in self.path.rglob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        write_text(self.path / "config.yaml", config_yaml)
        write_text(self.path / "environment.json", json.dumps(describe_environment(), indent=2) + "\n")
        if classes is not None:
            write_text(self.path / "classes.json", json.dumps(classes, ensure_ascii=False) + "\n")

    def save(self, state: TrainingState, recorder: Recorder, *, score: Score | None = None) -> bool:
        """Write a checkpoint. All processes call it. Return whether it was written.

        A failure is noted, and the next checkpoint is another try.

        Args:
            score: The headline metric of the epoch that was just validated; None within an epoch.

        Raises:
            TrainingError: Several checkpoints in a row could not be written, or another process took the folder over.
        """
        content = state.state_dict()

        def write() -> tuple[str | None, dict[int, Score]]:
            """Returns what went wrong, and the scores of the best checkpoints that are there."""
            best = state.best_scores
            try:
                self.lock.require_held()
                best = self.checkpoints.existing(best)
                if score is not None:
                    ranking = self.checkpoints.rank(best, state.epoch, score)
                    content["best_scores"] = ranking
                    content["best"], content["best_weights"] = next(iter(ranking.values()))
                    self.checkpoints.write_best(content, list(ranking), state.epoch)
                    best = ranking
                self.checkpoints.write_last(content, list(best))
                recorder.flush()
            except OSError as error:
                return f"{error.filename or self.last}: cannot be written ({error.strerror or error})", best
            return None, best

        fault, state.best_scores = distributed.on_main(write)
        self.failures = self.failures + 1 if fault else 0
        if self.failures == MAX_FAILURES:
            raise TrainingError(
                f"{fault}; {MAX_FAILURES} checkpoints in a row failed, so the run ends; "
                f"when they can be written, train.py resume={self.path} continues it"
            )
        if fault and distributed.is_main():
            print_note(f"{fault}; trying again at the next checkpoint")
        return not fault


def new_path(run_dir: str | None, name: str) -> Path:
    """run_dir, or a new folder below runs/; its microseconds differ for jobs that start together."""
    return Path(run_dir) if run_dir else RUNS / name / datetime.now().strftime("%Y%m%d-%H%M%S-%f")


def require_writable(path: Path) -> None:
    """Refuse a folder that cannot be written to, or is marked read-only (which would not stop root)."""
    nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        raise InputError(f"run_dir={path}: {nearest} is a file")
    if not nearest.stat().st_mode & 0o222 or not os.access(nearest, os.W_OK):
        raise InputError(f"run_dir={path}: {nearest} is read-only")


def describe_environment() -> dict[str, Any]:
    return {
        "command": shlex.join(sys.argv),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
        "git_commit": git_commit(),
    }


def git_commit() -> str | None:
    """The commit of this code, if it lies in a checkout and git is installed."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
