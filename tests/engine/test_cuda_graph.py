"""train.cuda_graph: an update by a graph equals an update without one, and it is refused where it cannot work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import xcit
from data.views.labelled_crop import LabelledImages
from xcit.engine import distributed
from xcit.engine.cuda_graph import WARM_UP, CapturedPass, CudaGraphs, require_cuda_graph
from xcit.engine.ema import make_ema
from xcit.engine.length import Length
from xcit.engine.loop import Trainer
from xcit.engine.numerics import grad_scaler
from xcit.engine.optimizer import make_optimizer
from xcit.engine.schedule import make_schedule
from xcit.engine.state import TrainingState
from xcit.engine.task import Target
from xcit.tasks import TASKS

from ..conftest import TINY, Result

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SIDES = (16, 16, 24, 16, 16, 24, 16, 24, 16, 24, 24)
"""The images of the updates: both shapes are warmed up, captured and replayed, in turns."""


class Repeated(CudaGraphs):
    """Stands in for CUDA graphs on a CPU: a replay calls the function again and writes into the recorded tensors.

    Recording runs nothing, as a capture does: what the function changes is undone, and the results have no values.
    `events` says what was done.
    """

    def __init__(self, module: torch.nn.Module, events: list[str]) -> None:
        self.module, self.events = module, events

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        self.events.append("warm up")
        yield

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], object]]:
        self.events.append("record")
        buffers = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        with torch.random.fork_rng(devices=[]):
            results = function()
        self.module.zero_grad()
        for buffer, before in buffers:
            buffer.copy_(before)
        for tensor in tensors(results):
            tensor.fill_(torch.nan)

        def replay() -> None:
            self.events.append("replay")
            for static, new in zip(tensors(results), tensors(function()), strict=True):
                static.copy_(new)
            self.module.zero_grad()  # a graph knows no attributes of parameters

        return results, replay


def tensors(results: Any) -> list[Tensor]:
    """What a pass writes: the losses and the gradients."""
    losses, gradients = results
    return [*losses.values(), *(gradient for _, gradient in gradients)]


def batches(device: torch.device) -> Iterator[LabelledImages]:
    generator = torch.Generator().manual_seed(0)
    for side in SIDES:
        labels = torch.randint(10, (4,), generator=generator)
        images = torch.randn(4, 3, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
        targets = torch.nn.functional.one_hot(labels, 10).float()
        yield LabelledImages(*(tensor.to(device) for tensor in (images, targets, labels, torch.ones(4))))


def trained(
    device: torch.device, precision: str = "fp32", events: list[str] | None = None, **options: Any
) -> tuple[dict[str, Tensor], list[float]]:
    """The weights and the losses after all updates; by the stand-in if `events` is given."""
    torch.manual_seed(0)
    model = xcit.create_model("xcit_n12", dim=32, depth=2, patch_size=8, num_classes=10, drop_path_rate=0.4)
    task = TASKS["classify"](model, Target("class", tuple("0123456789"))).to(device).train()
    optimizer = make_optimizer(task, name="adamw", lr=1e-3, weight_decay=0.1, options={})
    state = TrainingState(task, optimizer, grad_scaler(device, precision), make_ema(task, 0.9))
    of_schedule = {"warmup_epochs": 1, "warmup_lr": 1e-4, "cooldown_epochs": 0, "min_lr": 1e-5, "weight_decay_end": 0.2}
    schedule = make_schedule(optimizer, num_updates=20, updates_per_epoch=5, **of_schedule)
    length = Length(updates=20)
    trainer = Trainer(state, task, schedule, device, precision, 4, 1, 1.0, 1, seed=0, length=length, **options)
    if events is not None:
        trainer.__dict__["learn"] = CapturedPass(trainer.forward_backward, task, Repeated(task, events))
    losses = []
    for batch in batches(device):
        trainer.schedule_lr()
        losses.append(float(trainer.update(iter([batch]), trainer.position(5))["loss"]))
    assert state.ema
    return {
        **task.state_dict(),
        **{f"ema {key}": value for key, value in state.ema.module.state_dict().items()},
    }, losses


def test_updates_by_a_graph_are_those_without_one_to_the_last_bit() -> None:
    events: list[str] = []
    expected, found = trained(CPU), trained(CPU, events=events)
    assert found[1] == expected[1]
    assert [key for key, value in expected[0].items() if not torch.equal(value, found[0][key])] == []
    # Each shape has its own graph, after its own updates without one.
    assert events.count("warm up") == 2 * WARM_UP and events.count("record") == 2
    assert events.count("replay") == len(SIDES) - 2 * WARM_UP


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_graph_on_a_gpu_learns_what_is_learnt_without_one(precision: str) -> None:
    expected, found = trained(GPU, precision), trained(GPU, precision, cuda_graph=True)
    assert found[1] == pytest.approx(expected[1], rel=1e-3)
    for key, value in expected[0].items():
        torch.testing.assert_close(found[0][key], value, rtol=1e-3, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.gpu
def test_a_run_with_a_graph_resumes_exactly(command: Callable[..., Result], tmp_path: Path) -> None:
    small = (*TINY, "+model.depth=1", "+model.class_depth=1", "resolutions=[16]", "train.updates=12")
    small = (*small, "train.cuda_graph=true", "deterministic=true", "data.workers=2")
    for arguments in (
        ["run_dir=whole"],
        ["run_dir=half", "train.max_time=1e-9"],
        ["resume=half", "run_dir=rest", "train.max_time=null"],
    ):
        result = command("train.py", *small, *arguments)
        assert result.status == 0, result.stderr
    whole, rest = (
        torch.load(tmp_path / run / "checkpoints" / "last.pt", weights_only=True) for run in ("whole", "rest")
    )
    assert [key for key, value in whole["task"].items() if not torch.equal(value, rest["task"][key])] == []


def test_it_is_refused_where_it_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for device, name, processes, line in (
        (CPU, "classify", 1, "needs a CUDA GPU, and this run is on the cpu"),
        (GPU, "classify", 2, "is for one process, and this run has 2"),
        (GPU, "dino", 1, "task=dino does not run the same operations in each update"),
        (GPU, "detect", 1, "task=detect does not run the same operations in each update"),
    ):
        monkeypatch.setattr(distributed, "world_size", lambda processes=processes: processes)
        with pytest.raises(xcit.InputError, match=f"^train.cuda_graph=true: {line}; set train.cuda_graph=false$"):
            require_cuda_graph(True, device, name, TASKS[name])
        require_cuda_graph(False, device, name, TASKS[name])
    for name in ("classify", "distill", "multilabel", "regress"):
        monkeypatch.setattr(distributed, "world_size", lambda: 1)
        require_cuda_graph(True, GPU, name, TASKS[name])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_run_says_so_at_once(command: Callable[..., Result], tmp_path: Path) -> None:
    for options, line in (
        ((), "train.cuda_graph=true: needs a CUDA GPU, and this run is on the cpu; set train.cuda_graph=false"),
        (("train.accumulate=2",), "train.cuda_graph=true: cannot be combined with train.accumulate=2"),
        (("train.grad_checkpointing=true",), "train.cuda_graph=true: cannot be combined with train.grad_checkpointing"),
    ):
        result = command("train.py", *TINY, "train.cuda_graph=true", *options, f"run_dir={tmp_path}/run")
        assert result.status == 2 and result.stderr.splitlines()[-1].startswith(f"error: {line}"), result.stderr
    assert not (tmp_path / "run").exists()
