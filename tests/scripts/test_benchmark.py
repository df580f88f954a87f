"""scripts/benchmark.py measures both sides and writes its rows. No test asserts a speed."""

import faulthandler
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch

import xcit
from scripts import benchmark_steps, measurements
from scripts.benchmark_steps import Figure

from ..conftest import Result

Command = Callable[..., Result]
SCRIPT = "scripts/benchmark.py"
COLUMNS = [
    *("model", "image_size", "batch_size", "mode", "figure", "ours", "timm"),
    *("ratio", "lowest", "highest", "share", "of_eager"),
]


def test_a_row_for_each_figure_of_each_case(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, depth=1, cls_attn_layers=1))
    monkeypatch.setattr(xcit, "create_model", partial(xcit.create_model, depth=1, class_depth=1), raising=False)
    # Memory comes last, to check that it does not count what the compiler left behind.
    figures = "inference,training_checkpointed,inference_compiled,memory"
    result = command(SCRIPT, "--cases", "n12/16@32x2", "--figures", figures, "--rounds", "1")
    assert result.status == 0, result.stderr
    rows = json.loads((tmp_path / "bench.json").read_text())
    assert [list(row) for row in rows] == [COLUMNS] * 6
    assert {(row["model"], row["image_size"], row["batch_size"]) for row in rows} == {("xcit_n12_p16", 32, 2)}
    assert all(row["ours"] > 0 and row["timm"] > 0 for row in rows)
    assert all(row["lowest"] <= row["ratio"] <= row["highest"] for row in rows)


def test_an_export_is_measured_beside_both_eager_models(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The whole model takes the exporter half a minute.
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, depth=1))
    monkeypatch.setattr(xcit, "create_model", partial(xcit.create_model, depth=1), raising=False)
    result = command(SCRIPT, "--cases", "n12/16@32x2", "--figures", "inference_onnx", "--rounds", "1")
    assert result.status == 0, result.stderr
    (row,) = json.loads((tmp_path / "bench.json").read_text())
    assert (list(row), row["mode"]) == (COLUMNS, "onnx")
    assert all(row[key] > 0 for key in ("ours", "timm", "ratio", "of_eager"))


def test_an_unknown_case_or_figure_is_one_line(command: Command) -> None:
    for arguments, message in (
        (("--cases", "s12"), "--cases=s12: must be MODEL/PATCH@PIXELSxBATCH"),
        (("--cases", "s13/16@224x8"), "--cases=xcit_s13: unknown; did you mean xcit_s12?"),
        (("--cases", "n12/7@64x2"), "--cases=n12/7@64x2: must have a patch of 8 or 16"),
        (("--rounds", "0"), "--rounds=0: must be at least 1"),
        (("--minutes", "0"), "--minutes=0: must be greater than 0"),
        (("--json", "nowhere/a.json"), "--json=nowhere/a.json: must be a file in a folder that exists"),
        (("--json", "/"), "--json=/: must be a file in a folder that exists"),
        (("--json", ""), "--json=: must be a file in a folder that exists"),
        (("--figures", ""), "--figures=: unknown"),
        (("--cases", ""), "--cases=: must be MODEL/PATCH@PIXELSxBATCH"),
        (("--figures", "inferense"), "--figures=inferense: unknown; did you mean inference?"),
    ):
        result = command(SCRIPT, *arguments)
        assert (result.status, result.stderr.count("\n")) == (2, 1)
        assert result.stderr.startswith(f"error: {message}")


def test_figures_for_a_gpu_are_refused_without_one(command: Command) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    for figure in ("training_bf16_graph", "inference_bf16_autotuned", "peak_memory", "loop"):
        result = command(SCRIPT, "--figures", figure)
        assert (result.status, result.stderr) == (2, f"error: --figures={figure}: is for machines with a GPU\n")


def test_a_graph_is_measured_and_what_does_not_work_or_has_no_time_is_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(figure: Figure, model: torch.nn.Module, images: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("out of memory\nin frame 3")

    monkeypatch.setattr(
        measurements, "measure_machine", lambda *given: dict.fromkeys((torch.float32, torch.bfloat16), 1)
    )
    monkeypatch.setattr(measurements, "SECONDS", 0.01)
    monkeypatch.setattr(Figure, "needs_gpu", False)
    monkeypatch.setattr(benchmark_steps, "CapturedPass", lambda run, module: run)
    small = ("--cases", "n12/16@32x2", "--rounds", "2")
    for profile in ("bench.kernels.txt", "bench.training_bf16_graph.trace.json.gz"):
        (tmp_path / profile).write_text("of an earlier run")
    result = command(SCRIPT, *small, "--figures", "training_bf16_graph")
    assert result.status == 0, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
    (row,) = json.loads((tmp_path / "bench.json").read_text())
    assert (row["figure"], row["mode"]) == ("training_bf16_graph", "eager") and row["ratio"] > 0
    monkeypatch.setattr(Figure, "step", fails)
    result = command(SCRIPT, *small, "--figures", "inference")
    assert result.status == 1 and "n12/16@32x2 inference: out of memory" in result.stdout.splitlines()
    # A figure that hangs in compiled code ends the script, by a thread that needs no Python.
    watched: list[tuple[float, bool]] = []
    monkeypatch.setattr(
        faulthandler, "dump_traceback_later", lambda seconds, **named: watched.append((seconds, named["exit"]))
    )
    result = command(SCRIPT, *small, "--figures", "inference", "--minutes", "1e-9")
    assert watched == [(pytest.approx(60), True)]
    assert "n12/16@32x2 inference: not measured, because --minutes=1e-09 are over" in result.stdout.splitlines()
