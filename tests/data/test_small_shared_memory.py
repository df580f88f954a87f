"""Too little shared memory for the workers' batches ends a run in one line that says what to do."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data.loader import batches_of
from data.shared_memory import SharedMemoryError, require_shared_memory

from ..conftest import ROOT, TINY
from .test_shared_memory import Ragged, Square, loader

pytestmark = pytest.mark.usefixtures("no_worker_stays")

MOUNTED = 'mount -t tmpfs -o size=2m tmpfs /dev/shm && exec "$@"'


def can_mount() -> bool:
    """Whether this process may have a /dev/shm of its own, as root in a container with the right capability may."""
    command = ["unshare", "--mount", "sh", "-c", MOUNTED, "sh", "true"]
    return bool(shutil.which("unshare")) and not subprocess.run(command, capture_output=True, check=False).returncode


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a small /dev/shm (unshare --mount)")
def test_a_run_in_small_shared_memory_ends_in_one_line(image_tree: Callable[..., Path], tmp_path: Path) -> None:
    root = image_tree("mine", {"train/cat": 12, "train/dog": 12, "val/dog": 2})
    small = ("data.workers=2", "train.global_batch_size=24", "+model.depth=1", "+model.class_depth=1", "recipe=digits")
    arguments = (*TINY, *small, "data=folder", f"data.root={root}", "data.image_size=224", "run_dir=run")
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", MOUNTED, "sh", sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    *start_up, line = done.stderr.splitlines()
    assert not any(word in said for said in start_up for word in ("Traceback", "Error", "error"))
    assert line.startswith("error: /dev/shm: too little shared memory for the batches of the data workers (")
    assert all(part in line for part in ("of 2.1 MB are free", "--shm-size=", "--ipc=host", "data.workers"))


def full(tensor: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)")


@pytest.mark.parametrize("view", [Square, Ragged])
def test_the_error_comes_from_views_of_any_kind(monkeypatch: pytest.MonkeyPatch, view: type[Square]) -> None:
    """Views that do not use `SharedBuffers` would otherwise fail in a thread, and the main process would wait."""
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(SharedMemoryError, match=r"^/dev/shm: too little shared memory .*; give the container more "):
        list(batches_of(loader(view(), workers=1)))
    assert len(list(batches_of(loader(view(), workers=0)))) == 16, "the main process needs none"


@pytest.mark.parametrize("free", [0, 4096])
def test_no_room_for_the_semaphores_is_found_before_workers_start(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr("data.shared_memory.shutil.disk_usage", lambda path: SimpleNamespace(free=free, total=free))
    with pytest.raises(SharedMemoryError, match=r"\(0\.0 MB of 0\.0 MB are free\)"):
        list(batches_of(loader(Square(), workers=1)))
    assert len(list(batches_of(loader(Square(), workers=0)))) == 16


def test_systems_without_dev_shm_start_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("data.shared_memory.shutil.disk_usage", missing)
    with pytest.raises(SharedMemoryError, match="No such file or directory"):
        require_shared_memory(1)
    monkeypatch.setattr("data.shared_memory.sys.platform", "darwin")
    require_shared_memory(1)
