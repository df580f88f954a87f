"""The number of data workers follows from the cores that a process may use, and they end with it."""

import multiprocessing
import os
import select
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from data import workers
from data.examples import Example
from data.loader import make_loader
from data.samplers import EvalBatches
from data.viewed_examples import ViewedExamples

from .test_shared_memory import BATCH, IMAGES, Numbers, Square


@pytest.mark.parametrize(
    ("cores", "processes", "quota", "expected"),
    [
        (2, None, None, 2),
        (6, "1", None, 6),
        (64, None, None, 8),
        (64, "16", None, 4),
        (3, "2", None, 1),
        (1, "4", None, 1),
        (64, None, "max 100000", 8),
        (64, None, "300000 100000", 3),
        (64, "2", "50000 100000", 1),
        (2, None, "", 2),
    ],
)
def test_workers_default_to_the_cores_at_hand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cores: int, processes: str | None, quota: str | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setattr(workers, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert workers.default_workers() == expected


def test_workers_default_to_all_cores_on_a_system_that_cannot_tell_which_are_at_hand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.setattr(workers, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert workers.default_workers() == 5


@pytest.mark.parametrize(("asked", "started"), [(None, 3), (0, 0), (8, 8)])
def test_a_given_number_of_workers_is_kept(monkeypatch: pytest.MonkeyPatch, asked: int | None, started: int) -> None:
    monkeypatch.setattr("data.loader.default_workers", lambda: 3)
    viewed = ViewedExamples(Numbers(), Square(), replace=False)
    loader = make_loader(viewed, EvalBatches(IMAGES, BATCH), asked, torch.device("cpu"), keep_workers=False)
    assert loader.num_workers == started


class Endless(Numbers):
    """Tells the id of the worker, and then waits forever, as for a server that does not answer."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def __getitem__(self, index: int) -> Example:
        os.write(self.pipe, f"{os.getpid()} ".encode())
        while True:
            signal.pause()


def load(pipe: int) -> None:
    viewed = ViewedExamples(Endless(pipe), Square(), replace=False)
    next(iter(make_loader(viewed, EvalBatches(IMAGES, BATCH), 2, torch.device("cpu"), keep_workers=False)))


def test_workers_end_with_a_process_that_is_killed_whatever_they_wait_for() -> None:
    reading, writing = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=load, args=(writing,))
    process.start()
    ids: set[int] = set()
    while len(ids) < 2:
        ids |= set(map(int, os.read(reading, 100).split()))
    handles = [os.pidfd_open(number) for number in ids]
    process.kill()
    try:
        for handle in handles:
            poll = select.poll()
            poll.register(handle, select.POLLIN)  # readable when the worker has ended
            assert poll.poll(20_000), "a worker outlives its process"
    finally:
        process.join()
        for number in ids:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
