"""Whole runs on a GPU: precisions, memory formats, the compiler, NCCL, exact resume, and no waiting for the GPU."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from xcit.engine.cuda_graph import WARM_UP
from xcit.engine.loop import Trainer
from xcit.engine.task import Losses

from .conftest import TINY, Result, launch

Command = Callable[..., Result]
pytestmark = pytest.mark.gpu

# Two layers, and ten updates. The learning rate is high enough for the loss to fall within them.
SMALL = (
    *TINY,
    *("+model.depth=1", "+model.class_depth=1", "train.updates=10", "train.ema_decay=0.9", "data.workers=2"),
    *("optim.lr=0.004", "optim.warmup_epochs=0", "resolutions=[16]"),
)
BOTH_BF16 = ("train.precision=bf16", "train.channels_last=true")


def losses(folder: Path) -> list[float]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if row["split"] == "train"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    saved = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    return {f"{part} {key}": value for part in ("task", "ema") for key, value in saved[part].items()}


@pytest.fixture(scope="module")
def in_fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fp32") / "run"
    result = launch("train.py", *SMALL, f"run_dir={folder}", cwd=folder.parent, on_gpu=True)
    assert result.status == 0, result.stderr
    return folder


@pytest.mark.parametrize(
    "options",
    [
        ("train.channels_last=true",),
        (*BOTH_BF16, "train.grad_checkpointing=true"),
        ("train.precision=fp16",),
        (*BOTH_BF16, "train.compile=true"),
        (*BOTH_BF16, "train.cuda_graph=true"),
        (*BOTH_BF16, "train.cuda_graph=true", "train.compile=true"),
    ],
    ids=" ".join,
)
def test_a_run_learns_what_a_run_in_fp32_learns(
    command: Command, tmp_path: Path, in_fp32: Path, options: tuple[str, ...]
) -> None:
    torch.compiler.reset()
    result = command("train.py", *SMALL, *options, "run_dir=run")
    assert result.status == 0, result.stderr
    found, expected = losses(tmp_path / "run"), losses(in_fp32)
    assert expected[-1] < 0.9 * expected[0]
    assert found == pytest.approx(expected, rel=0.05)  # of fp16 and bf16; see the tests of the kernels for exactness
    used = json.loads((tmp_path / "run" / "environment.json").read_text())["device"]
    assert used == torch.cuda.get_device_name()
    if "train.precision=fp16" in options:
        assert torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)["scaler"]["scale"] > 1


@pytest.mark.parametrize("options", [BOTH_BF16, ("train.precision=fp16",)], ids=" ".join)
def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(
    command: Command, tmp_path: Path, options: tuple[str, ...]
) -> None:
    same = (*SMALL, *options, "deterministic=true", "augment=deit")
    for arguments in (
        ["run_dir=whole"],
        ["run_dir=half", "train.max_time=1e-9"],
        ["resume=half", "run_dir=rest", "train.max_time=null"],
    ):
        result = command("train.py", *same, *arguments)
        assert result.status == 0, result.stderr
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "rest")
    assert [key for key, value in whole.items() if not torch.equal(value, resumed[key])] == []


# Python that the process runs first: DistributedDataParallel with a process group of one process.
ALONE = """
import torch.distributed as dist
from xcit.engine import distributed
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group("cpu:gloo,cuda:nccl", init_method="file://{}", rank=0, world_size=1)
distributed.parallelise = lambda task, device: DistributedDataParallel(task, device_ids=[device.index])
"""


def test_one_process_with_nccl_learns_what_a_process_without_it_learns(tmp_path: Path, in_fp32: Path) -> None:
    before = ALONE.format(tmp_path / "store")
    result = launch("train.py", *SMALL, "run_dir=run", cwd=tmp_path, before=before, on_gpu=True)
    assert result.status == 0, result.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(in_fp32), rel=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_processes_with_nccl_learn_what_one_learns(tmp_path: Path, in_fp32: Path) -> None:
    result = launch("train.py", *SMALL, "run_dir=run", cwd=tmp_path, processes=2, on_gpu=True)
    assert result.status == 0, result.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(in_fp32), rel=1e-3)


def test_jpegs_are_decoded_on_the_gpu(
    command: Command, tmp_path: Path, image_tree: Callable[..., Path], recwarn: pytest.WarningsRecorder
) -> None:
    root = image_tree("mine", {f"{split}/{name}": 16 for split in ("train", "val") for name in ("red", "blue")}, ".jpg")
    small = (*SMALL, "data=folder", f"data.root={root}", "data.image_size=16", "train.global_batch_size=16")
    for where in ("cpu", "gpu"):
        result = command("train.py", *small, "augment=light", f"data.decode={where}", f"run_dir={where}")
        assert result.status == 0, result.stderr
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=0.1)
    assert not [warning for warning in recwarn if "deprecated" in str(warning.message)]


@pytest.mark.parametrize("options", [(), BOTH_BF16, (*BOTH_BF16, "train.cuda_graph=true")], ids=" ".join)
def test_between_two_rows_no_update_waits_for_the_gpu(
    command: Command, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    updates, update = [0], Trainer.update

    def watched(self: Trainer, *given: Any) -> Losses:
        updates[0] += 1
        # The first updates wait: the kernels are checked, the optimizer makes its state, and a graph is recorded.
        torch.cuda.set_sync_debug_mode("error" if updates[0] > WARM_UP + 1 else "default")
        try:
            return update(self, *given)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "update", watched)
    result = command(
        "train.py", *SMALL, *options, "augment=deit", "augment.mix_draws=4", "train.log_every=5", "run_dir=run"
    )
    assert result.status == 0, result.stderr
    assert updates == [10]
