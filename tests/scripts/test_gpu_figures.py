"""What scripts/benchmark.py measures on a GPU only, on a CPU: operations stand for kernels. No test asserts a speed."""

from pathlib import Path

import pytest
import torch

from scripts import benchmark_steps, gpu_figures, measurements
from scripts.benchmark_cases import Case
from scripts.gpu_figures import loop, peaks, profiled, union

CPU = torch.device("cpu")
SMALL = Case("xcit_n12", 16, 32, 2)


def test_overlapping_kernels_count_once() -> None:
    assert union([]) == 0
    assert union([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4


def test_a_profile_has_the_time_of_both_sides_their_kernels_and_a_trace(tmp_path: Path) -> None:
    one, two = torch.randn(2, 64, 64)
    steps = {"ours": lambda: one @ two, "timm": lambda: (one @ two) @ two}
    rates = {"ours": [900.0, 1000.0, 2000.0], "timm": [500.0]}
    table = tmp_path / "bench.json"
    for _ in range(2):
        busy, kernels, share = profiled(SMALL, "eager", "training_bf16", steps, rates, CPU, table)
    assert busy.ours > 0 and busy.timm > 0
    assert 2 * kernels.ours == kernels.timm
    assert (share.ours, share.timm) == pytest.approx((busy.ours * 1000 / 10, busy.timm * 500 / 10))
    assert (tmp_path / "bench.training_bf16.trace.json.gz").stat().st_size > 100
    listed = (tmp_path / "bench.kernels.txt").read_text()
    assert listed.count("training_bf16, timm") == 2 and "aten::mm" in listed


def test_peak_memory_and_the_loop_beside_the_bare_step(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("empty_cache", "synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *given: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1e6)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5e6)
    peak = peaks(SMALL, CPU)
    assert (peak.ours, peak.timm) == (4, 4)

    # A real run of train.py, of which two rows count.
    monkeypatch.setattr(benchmark_steps, "CapturedPass", lambda run, module: run)
    monkeypatch.setattr(measurements, "SECONDS", 0.01)
    monkeypatch.setattr(gpu_figures, "GRAPH", ("+model.depth=1",))
    for name, value in (("DISTINCT", 2), ("UPDATES", 4), ("LOG_EVERY", 1)):
        monkeypatch.setattr(gpu_figures, name, value)
    found = loop(SMALL, 2, CPU)
    assert found.ours > 0 and found.timm > 0
