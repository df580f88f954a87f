"""Creates and finds run folders. Only the main process writes."""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import LAST
from ..errors import InputError
from ..storage import write_tensors, write_text
from . import distributed
from .state import TrainingState

RUNS = Path("runs")
PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "numpy", "pillow")


class RunFolder:
    """runs/NAME/TIMESTAMP, or what run_dir= says.

    config.yaml           the whole configuration
    environment.json      versions, host, devices, git commit, command
    classes.json          the class names, in the order of the model's outputs
    metrics.jsonl         one object a line
    checkpoints/          last.pt, best.pt
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.last = path / LAST
        self.best = path / "checkpoints" / "best.pt"

    def require_free(self, *, restart: bool = False) -> None:
        """Refuse a folder that is not empty, unless `restart` is true and it is a run without a checkpoint."""
        names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        abandoned = restart and {"config.yaml", "classes.json"} <= names and not self.last.exists()
        if names and not abandoned:
            raise InputError(
                f"run_dir={self.path}: is not empty; choose a new folder, or continue its run with resume="
            )
        require_writable(self.path)

    def create(self) -> None:
        """Make the folder that `require_free` has accepted."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"run_dir={self.path}: cannot be made ({error.strerror})") from None

    def describe(self, config_yaml: str, classes: list[str] | None = None) -> None:
        """Write config.yaml, environment.json and classes.json; remove files that a killed run left half-written."""
        for leftover in self.path.rglob(".*.tmp"):
            leftover.unlink()
        write_text(self.path / "config.yaml", config_yaml)
        write_text(self.path / "environment.json", json.dumps(describe_environment(), indent=2) + "\n")
        if classes is not None:
            write_text(self.path / "classes.json", json.dumps(classes, ensure_ascii=False) + "\n")

    def save(self, state: TrainingState, *, is_best: bool) -> None:
        """Write best.pt if this epoch is the best so far, then last.pt. All processes call it.

        A run that is killed between the two repeats the updates since last.pt, with the same results.
        """
        content = state.state_dict()
        if not distributed.is_main():
            return
        self.last.parent.mkdir(exist_ok=True)
        if is_best:
            write_tensors(self.best, content)
        write_tensors(self.last, content)


def new_path(run_dir: str | None, name: str) -> Path:
    """run_dir, or a new folder below runs/; its microseconds differ for jobs that start together."""
    return Path(run_dir) if run_dir else RUNS / name / datetime.now().strftime("%Y%m%d-%H%M%S-%f")


def resolve(resume: str, run_dir: str | None, name: str) -> tuple[RunFolder, Path | None]:
    """The folder that a training run writes to, and the checkpoint that it continues from, if any.

    resume=none starts a new run. resume=auto continues run_dir, or else the latest run below runs/NAME, and starts a
    new run if there is no checkpoint. resume=PATH continues a run folder, given by its path or by that of its last.pt.

    Raises:
        InputError: there is nothing to continue at PATH, or the folder of a new run is not empty or cannot be written
            to. Nothing has been written then.
    """
    folder, checkpoint = locate(resume, run_dir, name)
    if checkpoint:
        require_writable(folder.path)
    else:
        folder.require_free(restart=resume == "auto")
    return folder, checkpoint


def locate(resume: str, run_dir: str | None, name: str) -> tuple[RunFolder, Path | None]:
    if resume == "none":
        return RunFolder(new_path(run_dir, name)), None
    if resume == "auto":
        if run_dir:
            candidates = [Path(run_dir)]
        else:
            candidates = sorted((RUNS / name).glob(f"*/{LAST}"), key=lambda path: path.stat().st_mtime)
            candidates = [path.parents[1] for path in candidates]
        folder = RunFolder(candidates[-1]) if candidates else RunFolder(new_path(run_dir, name))
        return folder, folder.last if folder.last.is_file() else None
    checkpoint = find_checkpoint("resume", resume)
    if checkpoint.parts[-2:] != LAST.parts:
        raise InputError(f"resume={resume}: must be a run folder or its {LAST}; pretrained= takes weights")
    folder = RunFolder(checkpoint.parents[1])
    if run_dir and Path(run_dir).resolve() != folder.path.resolve():
        raise InputError(f"run_dir={run_dir}: resume={resume} continues in {folder.path}; leave run_dir out")
    return folder, checkpoint


def find_checkpoint(key: str, path: str) -> Path:
    """The file itself, or the last checkpoint of a run folder. `key` is the configuration key of the path."""
    if not Path(path).exists():
        raise InputError(f"{key}={path}: no such file or run folder")
    if Path(path).is_dir():
        last = Path(path) / LAST
        if not last.is_file():
            raise InputError(f"{key}={path}: is not a run folder with a checkpoint (it lacks {LAST})")
        return last
    return Path(path)


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
