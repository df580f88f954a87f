"""train.cuda_graph: an update by a graph equals an update without one, and it is refused where it cannot work."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import xcit
from data.views.labelled_crop import LabelledImages
from xcit.engine import distributed
from xcit.engine.cuda_graph import WARM_UP, CapturedPass, CudaGraphs, require_cuda_graph
from xcit.engine.ema import make_ema
from xcit.engine.length import Length
from xcit.engine.loop import Trainer
from xcit.engine.numerics import grad_scaler, require_determinism
from xcit.engine.optimizer import make_optimizer
from xcit.engine.schedule import make_schedule
from xcit.engine.state import TrainingState
from xcit.engine.task import Losses, Target, Task
from xcit.tasks import TASKS

from ..conftest import TINY, Result

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SIDES = (16, 16, 24, 16, 16, 24, 16, 24, 16, 24, 24)
"""The images of the updates: both shapes are warmed up, captured and replayed, in turns."""


class OneTensor(NamedTuple):
    x: Tensor


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


TASKS_TO_CAPTURE: dict[str, tuple[Target, Callable[[], Tensor]]] = {
    "classify": (Target("class", ("a", "b", "c")), lambda: torch.eye(3)),
    "multilabel": (Target("classes", ("a", "b", "c")), lambda: torch.eye(3).index_fill(1, torch.tensor([2]), math.nan)),
    "regress": (Target("values", ("a", "b", "c"), mean=(0.0,) * 3, std=(1.0,) * 3), lambda: torch.eye(3)),
    "distill": (Target("class", ("a", "b", "c")), lambda: torch.eye(3)),
}


def task_and_batch(name: str) -> tuple[Task, LabelledImages]:
    target, targets = TASKS_TO_CAPTURE[name]
    torch.manual_seed(0)
    model = xcit.create_model("xcit_n12", dim=32, depth=1, patch_size=8, num_classes=3, drop_path_rate=0.4)
    images = torch.randn(3, 3, 16, 16)
    task: Any = TASKS[name](model, target).train()
    task.teacher = lambda images: images.mean(dim=(2, 3))  # used by distill alone
    return task, LabelledImages(images, targets(), torch.arange(3), torch.ones(3))


@pytest.mark.parametrize("name", TASKS_TO_CAPTURE)
def test_a_task_that_can_be_captured_reads_nothing_back(name: str) -> None:
    # A tensor without values raises an error where its values decide what runs, as a capture does.
    with FakeTensorMode():
        task, batch = task_and_batch(name)
        task(batch)["loss"].backward()
    assert TASKS[name].is_capturable


@pytest.mark.gpu
@pytest.mark.parametrize("name", TASKS_TO_CAPTURE)
def test_a_graph_of_each_task_has_its_losses(name: str) -> None:
    task, on_cpu = task_and_batch(name)
    task, batch = task.to(GPU), LabelledImages(*(tensor.to(GPU) for tensor in on_cpu))

    def run(batch: LabelledImages) -> Losses:
        losses = task(batch)
        losses["loss"].backward()
        return {key: loss.detach() for key, loss in losses.items()}

    learn, losses = CapturedPass(run, task), []
    for step in range(WARM_UP + 3):
        torch.manual_seed(step)
        expected = {key: loss.clone() for key, loss in run(batch).items()}
        task.zero_grad()
        torch.manual_seed(step)
        losses.append((learn(batch)["loss"].clone(), expected["loss"]))
        task.zero_grad()
    for found, wanted in losses:
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_a_graph_keeps_its_memory_when_other_code_frees_the_workspaces_of_cublas() -> None:
    linear, x = torch.nn.Linear(2048, 2048, device=GPU), torch.randn(2048, 2048, device=GPU)

    def run(batch: OneTensor) -> Losses:
        loss = linear(batch.x).square().mean()
        loss.backward()
        return {"loss": loss.detach()}

    learn = CapturedPass(run, linear)
    for _ in range(WARM_UP + 1):
        learn(OneTensor(x))
        linear.zero_grad()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    taken = [torch.full((1 << 20,), 7.0, device=GPU) for _ in range(64)]  # what was freed has another owner now
    learn(OneTensor(x))
    torch.cuda.synchronize()
    assert all(bool((tensor == 7).all()) for tensor in taken)


@pytest.fixture
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    require_determinism(True, GPU)
    yield
    require_determinism(False, GPU)


# Without determinism Adam turns the noise in a gradient that is zero into whole steps.
@pytest.mark.gpu
@pytest.mark.usefixtures("_deterministic")
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
