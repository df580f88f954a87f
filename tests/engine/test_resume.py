"""A run that is interrupted anywhere goes on to be what it would have been, to the bit."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from timm.utils import ModelEmaV3
from torch import Tensor

import xcit
from data import Batch, Digits, Mixing, TrainBatches, TrainLoader, TrainTransform
from xcit.engine.loop import Trainer, fit
from xcit.engine.numerics import grad_scaler
from xcit.engine.optimizer import make_optimizer
from xcit.engine.recorder import Recorder
from xcit.engine.run_folder import RunFolder
from xcit.engine.schedule import make_schedule
from xcit.engine.state import TrainingState, read_state
from xcit.engine.stopping import SIGNALS, StopSignals
from xcit.engine.trackers import NullTracker
from xcit.errors import InputError, TrainingError
from xcit.tasks import TASKS

CPU = torch.device("cpu")
EPOCHS, UPDATES = 2, 3
MOMENTS = EPOCHS * (UPDATES + 1)  # after each update and each validation
AUGMENT = {"scale": (0.2, 1.0), "ratio": (0.75, 1.33), "hflip": 0.5, "color_jitter": 0.4, "erase_prob": 0.25}


class Few:
    """29 of the digits; it tells which were asked for."""

    digits = Digits().train()
    classes = digits.classes

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return 29

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        self.loaded.append(index)
        return self.digits[index]


class Noting:
    """The loader, and what came out of it."""

    def __init__(self, loader: TrainLoader) -> None:
        self.loader = loader
        self.batches: list[Batch] = []

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in self.loader.epoch(epoch, start):
            self.batches.append(batch)
            yield batch


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


def begin(order: dict[str, Any] | None = None) -> TrainingState:
    torch.manual_seed(0)
    task = TASKS["classify"](
        xcit.create_model("xcit_n12", dim=32, depth=1, patch_size=8, num_classes=10, drop_path_rate=0.4), 10
    )
    optimizer = make_optimizer(task, name="adamw", lr=1e-2, weight_decay=0.1, options={})
    identity = {"classes": Few.classes, "order": order or {"train.global_batch_size": 8}}
    return TrainingState(task, optimizer, grad_scaler(CPU, "fp32"), ModelEmaV3(task, decay=0.5), identity)


def go_on(
    path: Path,
    asked_to_stop: Callable[[], str | None] = lambda: None,
    *,
    killed_at: tuple[int, str] | None = None,
    save_every: int | None = None,
    accumulate: int = 2,
    workers: int = 0,
) -> tuple[Noting, Few]:
    """The run in the folder, begun or continued; killed_at: after which update, and at what."""
    folder, state = RunFolder(path), begin()
    if folder.last.exists():
        state.load_state_dict(read_state(folder.last), str(folder.last))
    folder.create()

    def die(at: str) -> None:
        if killed_at == (state.step, at):
            raise Killed

    images = Few()
    order = TrainBatches(len(images), 8 // accumulate, seed=3, repeats=3, accumulate=accumulate)
    mixing = Mixing(10, mixup=0.8, cutmix=1.0, switch_prob=0.5, label_smoothing=0.1)
    transform = TrainTransform(16, rand_augment="rand-m9-mstd0.5-inc1", **AUGMENT)
    loader = Noting(TrainLoader(images, [transform], mixing, order, epochs=EPOCHS, workers=workers, device=CPU))
    schedule = make_schedule(
        state.optimizer,
        epochs=EPOCHS,
        updates_per_epoch=UPDATES,
        warmup_epochs=1,
        warmup_lr=1e-4,
        cooldown_epochs=0,
        min_lr=1e-5,
    )
    trainer = Trainer(state, state.task, schedule, CPU, "fp32", 8, accumulate, 1.0, log_every=2, seed=0)
    save = folder.save

    def save_or_die(state: TrainingState, *, is_best: bool) -> None:
        die("its validation's checkpoint" if state.seen == 0 else "its checkpoint")
        save(state, is_best=is_best)

    def validate(task: Any) -> dict[str, float]:
        die("its validation")
        return {"top1": task.model.head.bias.sum().item()}

    folder.save = save_or_die  # type: ignore[method-assign]
    with Recorder(folder.metrics, NullTracker(), after_step=state.step, epochs_done=state.epoch) as recorder:
        fit(
            trainer,
            loader,
            validate,
            epochs=EPOCHS,
            folder=folder,
            recorder=recorder,
            save_every=save_every,
            asked_to_stop=asked_to_stop,
        )
    return loader, images


def asking_at(moment: int) -> Callable[[], str | None]:
    moments = iter(range(MOMENTS))
    return lambda: "SIGTERM" if next(moments) == moment else None


def interrupt(path: Path, moment: int, **how: Any) -> None:
    with pytest.raises(TrainingError, match=r"stopped by SIGTERM after update \d, .*resume=.* goes on from there"):
        go_on(path, asking_at(moment), **how)


def rows(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in RunFolder(path).metrics.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in found]


def assert_same_run(path: Path, other: Path) -> None:
    assert rows(path) == rows(other)
    mine, its = (torch.load(RunFolder(folder).last, weights_only=True) for folder in (path, other))
    assert (mine["step"], mine["epoch"], mine["seen"], mine["best"]) == (6, 2, 0, its["best"])
    for part in ("task", "ema"):
        for key, value in its[part].items():
            assert torch.equal(mine[part][key], value), key


def assert_same_batches(mine: list[Batch], its: list[Batch]) -> None:
    for a, b in zip(mine, its, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Batch]]:
    """The run that nothing interrupts, and its batches."""
    path = tmp_path_factory.mktemp("whole") / "run"
    loader, images = go_on(path)
    assert [row["step"] for row in rows(path) if row["split"] == "train"] == [2, 3, 5, 6]
    assert len(images.loaded) == 48
    return path, loader.batches


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_run_stopped_at_any_moment_goes_on_as_if_it_had_not_been(
    moment: int, whole: tuple[Path, list[Batch]], tmp_path: Path
) -> None:
    """With repeated augmentation, mixing, drop path, accumulated passes, and a window of the log cut in two."""
    path = tmp_path / "run"
    interrupt(path, moment)
    epoch, done = divmod(moment, UPDATES + 1)
    saved = torch.load(RunFolder(path).last, weights_only=True)
    validated = done == UPDATES
    assert (saved["epoch"], saved["seen"]) == ((epoch + 1, 0) if validated else (epoch, 8 * (done + 1)))
    loader, images = go_on(path)
    left = whole[1][2 * saved["step"] :]
    assert_same_batches(loader.batches, left)
    assert len(images.loaded) == sum(len(batch.images) for batch in left), "nothing is loaded to be thrown away"
    assert_same_run(path, whole[0])


def test_a_run_stopped_at_every_update_comes_to_the_same_end(whole: tuple[Path, list[Batch]], tmp_path: Path) -> None:
    path = tmp_path / "run"
    for _ in range(EPOCHS * UPDATES):
        interrupt(path, 0)
    go_on(path)
    assert_same_run(path, whole[0])


@pytest.mark.parametrize("place", ["its checkpoint", "its validation", "its validation's checkpoint"])
def test_a_run_killed_between_checkpoints_repeats_nothing_in_its_rows(
    place: str, whole: tuple[Path, list[Batch]], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    with pytest.raises(Killed):
        go_on(path, killed_at=(3, place), save_every=1)
    saved = torch.load(RunFolder(path).last, weights_only=True)
    assert (saved["epoch"], saved["seen"]) == (0, 16 if place == "its checkpoint" else 24)
    assert not RunFolder(path).best.exists() or place == "its validation's checkpoint"
    go_on(path)
    assert_same_run(path, whole[0])


def test_checkpoints_within_an_epoch_come_by_the_number_of_updates_and_leave_the_best_alone(tmp_path: Path) -> None:
    for save_every, step in ((4, 4), (None, 3)):
        other = tmp_path / str(save_every)
        with pytest.raises(Killed):
            go_on(other, killed_at=(6, "its validation"), save_every=save_every)
        folder = RunFolder(other)
        saved = {file.name: torch.load(file, weights_only=True) for file in (folder.best, folder.last)}
        assert (saved["best.pt"]["step"], saved["last.pt"]["step"]) == (3, step)


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_the_number_of_workers_may_change(
    before: int, after: int, whole: tuple[Path, list[Batch]], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    interrupt(path, 4, workers=before)
    loader, _ = go_on(path, workers=after)
    assert_same_batches(loader.batches, whole[1][8:])
    assert_same_run(path, whole[0])


def test_the_number_of_passes_may_change(whole: tuple[Path, list[Batch]], tmp_path: Path) -> None:
    """The rest of the epoch is the same images, in larger batches."""

    def labels(batches: list[Batch]) -> list[Tensor]:
        return [torch.cat([batch.labels for batch in batches]).view(-1, 8).sort().values]

    interrupt(tmp_path / "run", 1)
    loader, _ = go_on(tmp_path / "run", accumulate=1)
    assert [len(batch.images) for batch in loader.batches] == [8] * 4
    assert torch.equal(*labels(loader.batches), *labels(whole[1][4:]))


def test_an_epoch_in_another_order_is_not_finished(tmp_path: Path) -> None:
    path = tmp_path / "run"
    interrupt(path, 0)
    last = RunFolder(path).last
    other = begin({"train.global_batch_size": 16})
    message = (
        "stands within epoch 1, which must be finished as it was begun: train.global_batch_size was 8 and is 16 now"
    )
    with pytest.raises(InputError, match=message):
        other.load_state_dict(read_state(last), "last.pt")
    interrupt(path, 2)
    other.load_state_dict(read_state(last), "last.pt")  # between epochs it may change
    assert other.epoch == 1


def test_a_checkpoint_from_before_there_was_a_position_is_the_end_of_an_epoch(
    whole: tuple[Path, list[Batch]], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    interrupt(path, 3)
    last = RunFolder(path).last
    content = torch.load(last, weights_only=True)
    for key in ("seen", "logged", "loss_sums"):
        del content[key]
    del content["identity"]["order"]
    torch.save(content, last)
    go_on(path)
    assert_same_run(path, whole[0])


@pytest.mark.parametrize("what", ["weights are", "the loss is"])
def test_what_has_gone_astray_is_in_no_checkpoint_within_an_epoch(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Trainer.update

    def astray(self: Trainer, batches: Iterator[Any]) -> Tensor:
        loss = update(self, batches)
        if self.state.step == 5 and what == "weights are":
            self.state.task.model.head.bias.data[0] = float("inf")
        return loss * float("nan") if self.state.step == 4 and what == "the loss is" else loss

    monkeypatch.setattr(Trainer, "update", astray)
    with pytest.raises(TrainingError, match=f"{what} (not finite|nan) by step {5 if what == 'weights are' else 4}"):
        go_on(tmp_path / "run", save_every=1)
    assert torch.load(RunFolder(tmp_path / "run").last, weights_only=True)["step"] == (
        4 if what == "weights are" else 3
    )


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_the_old_answers_to_it_return(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with StopSignals() as signals:
        assert signals.agreed() is None
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert signals.agreed() == number.name
    assert [signal.getsignal(each) for each in SIGNALS] == before
