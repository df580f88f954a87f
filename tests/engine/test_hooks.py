"""The loop calls a task's hooks before training, before each step and after each update, and logs its named losses."""

import json
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from xcit.engine.length import Length
from xcit.engine.run_folder import RunFolder
from xcit.engine.task import Losses, Position
from xcit.errors import TrainingError
from xcit.tasks.classify import Classify

from ..conftest import TINY, Result
from .small_run import UPDATES, go_on, interrupt
from .test_loop import by_hand, weights
from .toy import ToyLoader, ToyTask, run

Command = Callable[..., Result]


class Watching(ToyTask):
    """Records the arguments of its hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients: list[Tensor] = []
        self.calls: list[tuple[str, Position]] = []
        self.rates: list[float] = []

    def before_step(self, position: Position, optimizer: torch.optim.Optimizer) -> None:
        assert self.model.weight.grad is not None
        self.gradients.append(self.model.weight.grad.clone())
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.calls.append(("before", position))

    def after_update(self, position: Position) -> None:
        assert self.model.weight.grad is None, "the step is done"
        self.calls.append(("after", position))


def whole_gradient() -> Tensor:
    """Returns the gradient of the weights over all 24 samples."""
    return ToyTask().model.weight.detach() - by_hand(lr=1.0)


# before_step.


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_before_step_sees_the_gradients_of_the_whole_batch_clipped(
    accumulate: int, clip_norm: float | None, tmp_path: Path
) -> None:
    task = Watching()
    run(tmp_path, ToyLoader(accumulate), accumulate=accumulate, clip_norm=clip_norm, task=task)
    expected = whole_gradient() if clip_norm is None else ToyTask().model.weight.detach() - by_hand(1.0, clip_norm)
    assert len(task.gradients) == 1, "once for each update, however many passes"
    torch.testing.assert_close(task.gradients[0], expected, rtol=1e-4, atol=1e-6)
    assert task.rates == [pytest.approx(0.1)]


def test_before_step_can_cancel_gradients(tmp_path: Path) -> None:
    """The hook cancels the weight's gradient in the first of two updates, so only the bias changes in both."""

    class Cancelling(ToyTask):
        def before_step(self, position: Position, optimizer: torch.optim.Optimizer) -> None:
            if position.update == 0:
                self.model.weight.grad = None
            else:
                self.weight_before = self.model.weight.detach().clone()

    task, start = Cancelling(), ToyTask().model
    run(tmp_path, ToyLoader(2), task=task)
    assert torch.equal(task.weight_before, start.weight)
    assert not torch.equal(task.model.weight, start.weight)
    assert not torch.equal(task.model.bias, start.bias)


def test_before_step_can_change_a_weight_decay(tmp_path: Path) -> None:
    class Decaying(ToyTask):
        def before_step(self, position: Position, optimizer: torch.optim.Optimizer) -> None:
            for group in optimizer.param_groups:
                group["weight_decay"] = 0.5 if position.progress == 0 else 0.0

    state, _ = run(tmp_path, ToyLoader(1), task=Decaying())
    torch.testing.assert_close(weights(state), by_hand() - 0.1 * 0.5 * ToyTask().model.weight.detach())


# advise.


def test_a_task_advises_after_each_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Advising(ToyTask):
        def advise(self, measured: Mapping[str, float], position: Position) -> list[str]:
            return [f"score {measured['score']} by update {position.update} of {position.num_updates}"]

    run(tmp_path, ToyLoader(2), epochs=2, task=Advising(), scores=[1.0, 2.0])
    assert capsys.readouterr().err.splitlines() == [
        "note: score 1.0 by update 2 of 4",
        "note: score 2.0 by update 4 of 4",
    ]


# The position that each hook receives.


def test_hooks_receive_the_position_of_the_run(tmp_path: Path) -> None:
    task = Watching()
    run(tmp_path, ToyLoader(6), epochs=2, accumulate=2, task=task)
    order = [(name, position.update) for name, position in task.calls]
    assert order == [call for update in range(6) for call in (("before", update), ("after", update + 1))]
    assert {(position.num_updates, position.updates_per_epoch) for _, position in task.calls} == {(6, 3)}
    last = task.calls[-1][1]
    assert (last.epoch, last.progress) == (2.0, 1.0)


@pytest.mark.parametrize(("length", "num_updates"), [(Length(epochs=2), 6), (Length(updates=5), 5)])
def test_update_numbers_continue_after_a_resume(
    length: Length, num_updates: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The position follows from the checkpoint's step, whether the length is given in epochs or in updates."""
    seen: list[Position] = []
    monkeypatch.setattr(Classify, "after_update", lambda task, position: seen.append(position))
    interrupt(tmp_path / "run", 1, length=length)
    go_on(tmp_path / "run", length=length)
    assert seen == [Position(update, num_updates, UPDATES) for update in range(1, num_updates + 1)]


# begin_training.


def test_begin_training_is_called_once_by_a_run_and_never_by_an_evaluation(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call comes before the first update, with the task on its device. A resumed run makes it, too."""
    called: list[str] = []
    forward = Classify.forward

    def begin(task: Classify, device: torch.device) -> None:
        called.append(f"begins on {device}")
        assert next(task.parameters()).device.type == device.type

    def noted(task: Classify, batch: SimpleNamespace) -> Losses:
        called.append("learns")
        return forward(task, batch)

    monkeypatch.setattr(Classify, "begin_training", begin)
    monkeypatch.setattr(Classify, "forward", noted)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    small = (*TINY, "+model.depth=1", "+model.class_depth=1", "resolutions=[16]", "train.ema_decay=null")
    for how in (["train.updates=2", "run_dir=run"], ["train.updates=4", "run_dir=longer", "resume=run"]):
        called.clear()
        result = command("train.py", *small, *how)
        assert result.status == 0, result.stderr
        assert called == [f"begins on {device}", "learns", "learns"]
    called.clear()
    assert command("eval.py", "checkpoint=run", "run_dir=eval").status == 0
    assert called == []


# Named losses.


class TwoLosses(ToyTask):
    """Returns the mean absolute error and the mean error in addition to the loss."""

    def __init__(self, spoilt: str | None = None) -> None:
        super().__init__()
        self.spoilt, self.passes = spoilt, count()

    def forward(self, batch: SimpleNamespace) -> Losses:
        error = self.model(batch.x) - batch.y
        losses = {"signed": error.mean(), "absolute": error.abs().mean(), "loss": error.square().mean()}
        if self.spoilt and next(self.passes) == 1:
            losses[self.spoilt] = losses[self.spoilt] * float("nan")
        return losses


def test_named_losses_are_means_over_the_passes_and_the_window_of_the_log(tmp_path: Path) -> None:
    """Each of three updates has two passes, and one row covers the first two updates. The weights do not change."""
    loader = ToyLoader(6)
    _, rows = run(tmp_path, loader, accumulate=2, lr=1e-30, log_every=2, task=TwoLosses())
    batches, task = list(loader.epoch(0)), TwoLosses()
    train = [row for row in rows if row["split"] == "train"]
    assert [row["step"] for row in train] == [2, 3]
    for row, part in zip(train, (batches[:4], batches[4:]), strict=True):
        of_batches = [task(batch) for batch in part]
        for name in ("loss", "absolute", "signed"):
            assert row[name] == pytest.approx(sum(losses[name].item() for losses in of_batches) / len(part)), name
        assert list(row)[:7] == ["step", "epoch", "split", "loss", "absolute", "signed", "lr"]


def test_only_the_loss_updates_the_weights(tmp_path: Path) -> None:
    state, _ = run(tmp_path, ToyLoader(1), task=TwoLosses())
    torch.testing.assert_close(weights(state), by_hand())


@pytest.mark.parametrize(("name", "said"), [("absolute", "the loss 'absolute'"), ("loss", "the loss")])
def test_a_named_loss_that_is_not_finite_stops_the_run_and_is_named(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=rf"^{said} is nan by step 2 of epoch 1 \(lr 0\.1\): training stopped"):
        run(tmp_path, ToyLoader(3), task=TwoLosses(spoilt=name))
    rows = [json.loads(line) for line in RunFolder(tmp_path / "run").metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_named_losses_survive_a_stop_within_a_log_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint holds the running sum of each loss."""

    def with_another(task: Classify, batch: SimpleNamespace) -> Losses:
        loss = nn.functional.cross_entropy(task.model(batch.images), batch.targets)
        return {"loss": loss, "doubled": 2 * loss.detach()}

    monkeypatch.setattr(Classify, "forward", with_another)
    for path, moments in ((tmp_path / "whole", ()), (tmp_path / "stopped", (0, 3))):
        for moment in moments:
            interrupt(path, moment)
        go_on(path)
    whole, stopped = (
        [json.loads(line) for line in RunFolder(path).metrics.read_text().splitlines()]
        for path in (tmp_path / "whole", tmp_path / "stopped")
    )
    for row, other in zip(whole, stopped, strict=True):
        assert (row.get("loss"), row.get("doubled")) == (other.get("loss"), other.get("doubled"))
        assert row["split"] == "val" or row["doubled"] == 2 * row["loss"]
