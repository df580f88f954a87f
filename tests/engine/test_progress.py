"""A command is not silent: a thread writes a line every so often, and a bar stands on a terminal."""

import io
import threading
from pathlib import Path

import pytest
import torch
from rich.console import Console

from data.datasets.digits import Digits
from data.loader import EvalLoader
from data.views.labelled_crop import CenterLabelledCrop
from xcit.engine.progress import COUNTED, LATER, UNCOUNTED, Progress, TrainingProgress, duration
from xcit.preprocessing import Preprocessing

from .toy import ToyLoader, run


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_step_is_told_of_after_seconds_of_silence_and_then_every_so_often() -> None:
    clock = Clock()
    progress = Progress(shown=True, clock=clock)
    assert progress.line(1e9) is None, "nothing is done"
    progress.begin("reading")
    assert progress.line(UNCOUNTED - 0.1) is None
    assert progress.line(UNCOUNTED) == "reading: 5 s"
    assert progress.line(UNCOUNTED + LATER - 0.1) is None
    assert progress.line(UNCOUNTED + LATER) == "reading: 15 s"
    clock.now = 40.0
    progress.begin("building")
    assert progress.line(40.9) is None, "a step that takes a moment is not told of"
    assert progress.line(41.0) == "building: 1 s", "many short steps are not silent together"


def test_steps_of_a_few_seconds_each_are_not_silent_together() -> None:
    clock = Clock()
    progress = Progress(shown=True, clock=clock)
    lines = []
    for second in range(30):
        clock.now = second
        if second % 4 == 0:
            progress.begin(f"evaluation {second // 4 + 1}", total=8, unit="batches").advance(second % 3)
        lines.append(progress.line(clock.now))
    assert [number for number, line in enumerate(lines) if line] == [10, 20]
    assert COUNTED == 10


def test_a_counted_step_says_how_far_it_is() -> None:
    clock = Clock()
    progress = Progress(shown=True, clock=clock)
    step = progress.begin("epoch 3/400", 1_000, done=200)
    assert step.describe(7.0) == "200 of 1,000 images, 7 s"
    step.advance(100)
    step.status = "loss 1.2"
    assert step.describe(10.0) == "300 of 1,000 images, 10 images/s, 70 s left; loss 1.2"


def test_the_thread_writes_a_line_that_is_due() -> None:
    written, seen = [], threading.Event()

    def write(line: str) -> None:
        written.append(line)
        seen.set()

    clock = Clock()
    with Progress(shown=True, clock=clock, write=write) as progress:
        progress.begin("compiling")
        clock.now = 12.0
        assert seen.wait(60)
    assert written == ["compiling: 12 s"]
    progress.thread.join(60)
    assert not progress.thread.is_alive()


def test_a_process_that_shows_nothing_has_no_thread(capfd: pytest.CaptureFixture[str]) -> None:
    with Progress(shown=False) as progress:
        progress.begin("compiling")
        progress.say("epoch 1/2")
        assert list(progress.track([1, 2], "validation")) == [1, 2]
        assert not progress.thread.is_alive()
    assert capfd.readouterr() == ("", "")


def test_a_terminal_has_a_bar_while_something_is_counted() -> None:
    clock, screen = Clock(), io.StringIO()
    with Progress(shown=True, clock=clock) as progress:
        progress.console = Console(file=screen, force_terminal=True, width=120)
        assert list(progress.track([1, 2, 3], "validation [raw]")) == [1, 2, 3]
        assert progress.bar is None
        progress.begin("epoch 1/2", 64).advance(32)
        clock.now = 2.0
        assert progress.bar is not None
        progress.bar.refresh()
        assert progress.line(1e9) is None, "the bar says it"
        progress.say("epoch 1/2  loss [1]")
        progress.begin("saving")
        assert progress.bar is None
    shown = screen.getvalue()
    assert "validation [raw]" in shown and "32 of 64 images, 16 images/s, 2 s left" in shown
    assert "epoch 1/2  loss [1]\n" in shown


def test_the_training_loop_counts_images_and_tells_of_each_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, lines = [], []
    begin = Progress.begin

    def begin_and_keep(self: Progress, *arguments, **options):  # type: ignore[no-untyped-def]
        steps.append(begin(self, *arguments, **options))
        return steps[-1]

    monkeypatch.setattr(Progress, "begin", begin_and_keep)
    monkeypatch.setattr(Progress, "say", lambda self, line: lines.append(line))
    run(tmp_path, ToyLoader(3), epochs=2)
    epochs = [step for step in steps if step.what.startswith("epoch")]
    assert [(step.what, step.done, step.total) for step in epochs] == [("epoch 1/2", 24, 24), ("epoch 2/2", 24, 24)]
    assert all("loss" in step.status and "left of the run" in step.status for step in epochs)
    assert [line.partition("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    saving = [step.what for step in steps if step not in epochs]
    assert saving == [f"saving {tmp_path}/run/checkpoints/last.pt"] * 2


def test_a_resumed_run_that_only_has_to_validate_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda self, line: lines.append(line))
    training = TrainingProgress(Progress(shown=True, clock=Clock()), epochs=3, updates=30, updates_done=20)
    training.epoch_done(2, {"raw": {"top1": 50.0}}, "top1")
    assert lines == ["epoch 2/3  trained before the resume  top1 raw 50.00  0 s"]


def test_a_resumed_run_estimates_from_its_own_updates() -> None:
    clock = Clock()
    training = TrainingProgress(Progress(shown=True, clock=clock), epochs=4, updates=40, updates_done=15)
    training.begin_epoch(2, 10, 5, images_per_update=8)
    assert (training.step.done, training.step.total) == (40, 80)
    for _ in range(5):
        training.advance()
    clock.now = 50.0
    training.show(1.0, 1e-3, 8.0)
    assert training.step.status == "loss 1.000, lr 1.00e-03; 200 s left of the run".replace("200 s", duration(200))


def test_durations() -> None:
    found = [duration(seconds) for seconds in (0.4, 99, 100, 3 * 3600 + 20 * 60, 52 * 3600)]
    assert found == ["0 s", "99 s", "2 min", "3 h 20 min", "2 d 4 h"]


def test_an_evaluation_loader_has_as_many_batches_as_it_says() -> None:
    view = CenterLabelledCrop(Preprocessing(size=(8, 8)), 10)
    for rank in range(2):
        loader = EvalLoader(Digits().val(), view, 100, workers=0, device=torch.device("cpu"), rank=rank, world_size=2)
        assert len(loader) == len(list(loader)) == 2
