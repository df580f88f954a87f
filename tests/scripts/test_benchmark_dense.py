"""scripts/benchmark_dense.py measures, fits and draws. No test asserts a speed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.dense_cases import Case, Cost, measure

from ..conftest import Result

Command = Callable[..., Result]
SCRIPT = "scripts/benchmark_dense.py"


def test_a_row_for_each_case_and_a_plot(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without processes: each takes seconds to start, and the test below starts one.
    monkeypatch.setattr("scripts.dense_cases.measure", fake)
    small = ("--large", "96,64", "--sides", "64,96,4096", "--training-sides", "64", "--patch-sizes", "16")
    result = command(SCRIPT, *small, "--longest-s", "100", "--limit-gb", "7")
    assert result.status == 0, result.stderr
    rows = json.loads((tmp_path / "dense_bench.json").read_text())
    large, growth, training = ([row for row in rows if row["figure"] == f] for f in ("large", "growth", "training"))
    assert len(large) == 12 and len(training) == 4
    assert [(row["model"], row["height"]) for row in growth].count(("vit_tiny_patch16_224", 4096)) == 0
    assert "growth: vit_tiny_patch16_224/16 4096x4096 pyramid fp32: not run: would take 281 s" in result.stderr
    assert "xcit_n12/16 pyramid, 64 to 4096 pixels: exponents: time 1.00, CPU time 1.00, memory 1.00" in result.stdout
    assert "does not fit in 7 GB" in result.stdout
    assert (tmp_path / "dense_growth.png").stat().st_size > 10_000


def fake(case: Case, rounds: int, limit_gb: float) -> Cost:
    """Linear in the pixels, except for the time of ViT."""
    if case.part == "upernet":
        return Cost()
    seconds = ((case.pixels / 1e6) ** (2 if case.model.startswith("vit") else 1),) * rounds
    return Cost(seconds, seconds, case.pixels / 1e3)


def test_a_process_measures_or_says_that_the_image_does_not_fit() -> None:
    case = Case("pyramid", "xcit_n12", 16, 64, 64)
    found = measure(case, 2, 64)
    assert len(found.seconds) == 2 and min(found.seconds) > 0 and found.peak_mb is not None
    assert measure(Case("pyramid", "xcit_n12", 16, 2**17, 2**17), 1, 64) == Cost()


def test_a_wrong_option_is_one_line(command: Command) -> None:
    for arguments, message in (
        (("--figures", "larg"), "--figures=larg: unknown; did you mean large?"),
        (("--sides", "64,x"), "--sides=64,x: must be numbers, separated by commas"),
        (("--large", "64"), "--large=64: must be a width and a height, as 6000,4000"),
    ):
        result = command(SCRIPT, *arguments)
        assert (result.status, result.stderr.count("\n")) == (2, 1)
        assert result.stderr.startswith(f"error: {message}")
