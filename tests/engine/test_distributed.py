"""Collectives, and a run on systems other than Linux."""

import ctypes
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from data.samplers import EvalBatches
from xcit.engine import distributed

from ..conftest import in_two_processes


def test_a_system_without_prctl_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("there is no prctl"))
    distributed.end_with_parent()


def gather(rank: int, folder: str) -> None:
    """Checks rows_of_all in one of two processes."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for images in (1, 2, 5):
        whole = torch.arange(3 * images).view(images, 3)
        own = [index for batch in EvalBatches(images, 2, rank=rank, world_size=2) for index, _ in batch]
        vectors = whole[own] if own else torch.empty(0, 0, dtype=torch.long)
        assert torch.equal(distributed.rows_of_all(vectors), whole)
        assert torch.equal(distributed.rows_of_all(whole[own, 0]), whole[:, 0])
    dist.destroy_process_group()


def test_rows_that_are_spread_over_processes_come_back_in_their_order(tmp_path: Path) -> None:
    in_two_processes(gather, tmp_path)
    assert distributed.rows_of_all(torch.arange(3)).tolist() == [0, 1, 2]
