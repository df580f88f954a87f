"""train.batch_size=auto doubles train.accumulate until a pass fits into the memory; the global batch stays."""

import copy
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import yaml

from xcit.engine import batch_size, distributed
from xcit.engine.batch_size import find_accumulate
from xcit.errors import InputError

from ..conftest import TINY, Result
from .toy import CPU, ToyLoader, ToyTask


class Passes(ToyTask):
    """Keeps the images, 4 floats each, and the differences from the targets, one float each, for its backward pass."""

    def forward(self, batch: SimpleNamespace) -> dict[str, torch.Tensor]:
        return super().forward(SimpleNamespace(x=batch.x.clone(), y=batch.y))


@pytest.mark.parametrize(("kilobytes", "expected"), [(1.0, 1), (0.4, 2), (0.2, 4)])
def test_the_largest_pass_that_fits_is_found_and_the_task_stays_as_it_is(
    kilobytes: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 images keep about half a kilobyte."""
    monkeypatch.setattr(batch_size, "memory_of_machine", lambda: 4 * 1000 * kilobytes)
    task = Passes()
    before = copy.deepcopy(task.state_dict())
    found = find_accumulate(task, [(parts, ToyLoader(parts)) for parts in (1, 2, 4)], CPU, "fp32")
    assert found == expected
    assert all(torch.equal(value, before[key]) for key, value in task.state_dict().items())
    assert all(parameter.grad is None for parameter in task.parameters())


class Summed(Passes):
    """Sums over the processes, as the tasks with unknown labels do."""

    def forward(self, batch: SimpleNamespace) -> dict[str, torch.Tensor]:
        loss = super().forward(batch)["loss"]
        return {"loss": loss / distributed.total(torch.ones(1)).sum()}


def find_in_process(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=20)
    )
    batch_size.memory_of_machine = lambda: 4 * 1000 * (0.2, 10.0)[rank]  # type: ignore[assignment]
    found = find_accumulate(Summed(), [(parts, ToyLoader(parts)) for parts in (1, 2, 4)], CPU, "fp32")
    Path(folder, str(rank)).write_text(str(found))
    dist.destroy_process_group()


def test_a_process_with_less_memory_does_not_leave_the_other_one_waiting(tmp_path: Path) -> None:
    mp.spawn(find_in_process, (str(tmp_path),), nprocs=2)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["4", "4"]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried …"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1.0 GB, other allocations: 8.0 GB)"),
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_on_any_device_means_that_a_pass_does_not_fit(error: Exception) -> None:
    class First(Passes):
        def forward(self, batch: SimpleNamespace) -> dict[str, torch.Tensor]:
            if len(batch.x) > 12:
                raise error
            return super().forward(batch)

    assert find_accumulate(First(), [(1, ToyLoader(1)), (2, ToyLoader(2))], CPU, "fp32") == 2


def test_another_error_of_a_pass_is_not_taken_for_a_lack_of_memory() -> None:
    class Wrong(Passes):
        def forward(self, batch: SimpleNamespace) -> dict[str, torch.Tensor]:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        find_accumulate(Wrong(), [(1, ToyLoader(1)), (2, ToyLoader(2))], CPU, "fp32")


def test_if_nothing_fits_the_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "memory_of_machine", lambda: 100)
    with pytest.raises(InputError, match="not even the smallest pass fits"):
        find_accumulate(Passes(), [(1, ToyLoader(1)), (2, ToyLoader(2))], CPU, "fp32")


def test_a_run_keeps_its_global_batch_and_what_was_found(
    command: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def fits(task: object, batch: object, device: object, precision: object) -> bool:
        asked.append(len(batch.images))  # type: ignore[attr-defined]
        assert batch.images.shape[-1] == 24  # type: ignore[attr-defined]
        return asked[-1] <= 32

    monkeypatch.setattr(batch_size, "fits", fits)
    small = (*TINY, "+model.depth=1", "+model.class_depth=1", "resolutions=[16]", "train.ema_decay=null")
    sizes = ("augment.image_sizes=[16,24]", "train.epochs=2", "train.max_time=1e-9")
    result = command("train.py", *small, *sizes, "train.batch_size=auto", "run_dir=run")
    assert result.status == 0, result.stderr
    assert asked == [128, 64, 32]
    assert "train.batch_size=auto: a pass fits with train.accumulate=4" in result.stderr
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["train"]
    assert (written["batch_size"], written["accumulate"], written["global_batch_size"]) == (None, 4, 128)
