"""The growth of time and memory with the resolution is measured as far as there is time."""

import time

import pytest
import torch

from xcit.evaluation import cost
from xcit.evaluation.cost import cost_of, growth, memory_of_process

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
    assert called == [100] * 4 + [200] * 4 + [400] * 4
