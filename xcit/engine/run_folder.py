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
from ..device import default_device, name_of
from ..errors import InputError, TrainingError, print_note
from ..storage import write_text
from . import distributed
from .checkpoints import Checkpoints, Score, replace_by_copy
from .recorder import Recorder, epochs_begun
from .run_lock import LOCK, RunLock
from .state import TrainingState

RUNS = Path("runs")
PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "numpy", "pillow")


BEFORE_RESULT = ("environment.json", "config.yaml")
"""What a command writes before its first result."""
BEFORE_CHECKPOINT = (
    *BEFORE_RESULT,
    *("classes.json", "metrics.jsonl", "metrics.csv", "curves.png", "tensorboard", "wandb", "mlflow.db"),
)
"""What a training run writes before its first checkpoint."""
MAX_FAILURES = 3
"""Failed checkpoints in a row after which the run ends."""


class RunFolder:
    """runs/NAME/TIMESTAMP, or what run_dir= says.

    config.yaml           the whole configuration
    environment.json      versions, host, devices, git commit, command
    classes.json          the class names, in the order of the model's outputs
    metrics.jsonl         one object a line
    curves.png            the same as a picture, see curves.py
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
        self.training = False
        """Whether a training run writes to it."""
        self.failures = 0
        """Checkpoints in a row that could not be written."""

    def keep(self, *, last: int, best: int) -> None:
        """Set how many of the newest and of the best checkpoints are kept."""
        self.checkpoints.keep_last, self.checkpoints.keep_best = last, best

    @property
    def holds_work(self) -> bool:
        """Whether a new run would destroy something: a checkpoint, results, or the metrics of more than one epoch."""
        return self.results.exists() or bool(self.checkpoints.all()) or epochs_begun(self.metrics) > 1

    def require_free(self, *, training: bool = False) -> None:
        """Refuse a folder that cannot be written to or that holds anything worth keeping.

        What a command left that ended before its first checkpoint or result may be overwritten.

        training: Whether a training run will write to it, rather than an evaluation.
        """
        self.training = training
        require_possible(self.path)
        require_writable(self.path)
        kept = self.kept_files()
        if kept:
            resume = f", or continue its run with resume={self.path}" if training and self.checkpoints.all() else ""
            raise InputError(f"run_dir={self.path}: is not empty (it has {kept[0]}); choose a new folder{resume}")

    def kept_files(self) -> list[str]:
        """The names of the files in the folder that a new run must not overwrite."""
        names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        names = {name for name in names if not is_half_written(Path(name))}
        unimportant = {LOCK, *(BEFORE_CHECKPOINT if self.training else BEFORE_RESULT)}
        if not names & {LOCK, BEFORE_RESULT[0]}:  # no run wrote to it
            unimportant = set()
        if epochs_begun(self.metrics) > 1:
            unimportant -= {self.metrics.name}
        if all(is_half_written(path) for path in self.checkpoints.folder.glob("*")):
            unimportant |= {self.checkpoints.folder.name}
        return sorted(names - unimportant)

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
        self.require_free(training=self.training)
        if (self.path / BEFORE_RESULT[0]).exists():
            what = "checkpoint" if self.training else "result"
            print_note(f"{self.path}: an earlier start ended before its first {what}; its files are overwritten")

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
        # environment.json comes first: it tells a later run that the other files are not the user's own.
        write_text(self.path / "environment.json", json.dumps(describe_environment(), indent=2) + "\n")
        write_text(self.path / "config.yaml", config_yaml)
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
                    ranking = self.checkpoints.rank(best, state.epoch, score, state.headline)
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
                f"when they can be written, python train.py resume={self.path} continues it"
            )
        if fault and distributed.is_main():
            print_note(f"{fault}; trying again at the next checkpoint")
        return not fault


def new_path(run_dir: str | None, name: str) -> Path:
    """run_dir, or a new folder below runs/; its microseconds differ for jobs that start together."""
    return Path(run_dir) if run_dir else RUNS / name / datetime.now().strftime("%Y%m%d-%H%M%S-%f")


def is_half_written(path: Path) -> bool:
    """Whether it is a temporary file, which a killed process left."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def require_possible(path: Path, key: str = "run_dir") -> None:
    """Refuse a path that no file can have here: a name in it is too long, for example."""
    nearest = nearest_existing(path)
    inside = path / LAST.parent / f".best-epoch-100000.pt.{2**22}.tmp"  # the longest path in a run folder
    try:
        # The names are checked one by one, because the system looks at none behind the first that does not exist.
        for tried in (inside, *(nearest / name for name in path.parts)):
            with suppress(FileNotFoundError, NotADirectoryError):
                tried.lstat()
    except (OSError, ValueError) as error:  # a ValueError if it holds a NUL character
        raise InputError(f"{key}={path}: cannot be used ({getattr(error, 'strerror', error)})") from None


def require_writable(path: Path) -> None:
    """Refuse a folder that cannot be written to, or is marked read-only (which would not stop root)."""
    nearest = nearest_existing(path)
    if not nearest.is_dir():
        raise InputError(f"run_dir={path}: {nearest} is not a folder")
    if not nearest.stat().st_mode & 0o222 or not os.access(nearest, os.W_OK):
        raise InputError(f"run_dir={path}: {nearest} is read-only")


def nearest_existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists. A path that cannot be looked up counts as not existing."""
    return next(parent for parent in (path, *path.absolute().parents) if os.path.lexists(parent))


def describe_environment() -> dict[str, Any]:
    return {
        "command": shlex.join(sys.argv),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "device": name_of(default_device()) or platform.processor() or "cpu",
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
