"""The growth of time and memory with the resolution is measured as far as there is time."""

import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count

import pytest
import torch

from xcit.evaluation import cost
from xcit.evaluation.cost import Cost, cost_of, growth, memory_of_process

from ..conftest import ROOT

CPU = torch.device("cpu")


def test_the_memory_is_what_is_needed_above_that_in_use() -> None:
    if not memory_of_process("VmRSS"):
        pytest.skip("the system does not tell a process its memory")
    kept = torch.ones(50_000_000, dtype=torch.uint8)
    taken = cost_of(lambda side: torch.ones(side * 1_000_000, dtype=torch.uint8).max(), 30, CPU)
    assert taken.resolution == 30
    assert 29 < taken.memory_mb < 45
    del kept


def test_growth_is_in_ascending_order_and_stops_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    called: list[int] = []

    def run(resolution: int) -> None:
        called.append(resolution)
        now[0] += resolution**2 / 1e4  # 1 second at 100 pixels

    found = growth(run, [400, 100, 200], CPU, budget=30.0)
    assert [(each.resolution, each.seconds) for each in found] == [(100, 1.0), (200, 4.0)]
    assert called == [100, 100, 200, 200]
    monkeypatch.setattr(cost, "ENOUGH_SECONDS", 100)
    called.clear()
    assert [each.resolution for each in growth(run, [100, 200, 400], CPU)] == [100, 200, 400]
    assert called == [100, 100, 200, 200, 400, 400] + ([100] * 3 + [200] * 3 + [400] * 3) * 4


def test_other_work_on_the_machine_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of four calls take a second longer, and the memory of one is ten times as large."""
    now, calls = [0.0], count()
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(cost, "ENOUGH_SECONDS", 100)

    def measured(run: Callable[[int], object], resolution: int, device: torch.device) -> Cost:
        number = next(calls)
        seconds = resolution / 1000 + (number % 4 != 3)
        now[0] += seconds
        return Cost(resolution, seconds, resolution * (10 if number == 1 else 1))

    monkeypatch.setattr(cost, "cost_of", measured)
    found = growth(lambda _: None, [100, 200, 400], CPU)
    assert found == [Cost(100, 0.1, 100), Cost(200, 0.2, 200), Cost(400, 0.4, 400)]


def test_a_thread_needs_as_much_memory_as_the_first_one() -> None:
    if not memory_of_process("VmRSS"):
        pytest.skip("the system does not tell a process its memory")
    # In a process of its own, whose threads have no memory yet.
    program = """
import threading, torch
from xcit.evaluation.cost import cost_of, share_free_memory
def run(side):
    return [torch.ones(100_000, dtype=torch.uint8) for _ in range(side)]  # parts that come from a thread's memory
def thread():
    print([cost_of(run, 100, torch.device("cpu")).memory_mb for _ in range(9)][-1])
share_free_memory()
thread()
other = threading.Thread(target=thread)
other.start()
other.join()
"""
    out = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    first, other = map(float, out.split())
    assert first == pytest.approx(10, rel=0.1)
    assert other == pytest.approx(10, rel=0.1)
