"""Starts, interrupts and resumes a run of the real loop on a few digits."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

import xcit
from data.datasets.digits import Digits
from data.examples import Example, Examples
from data.loader import TrainLoader
from data.mixing import Mixing
from data.samplers import TrainBatches
from data.transforms import TrainTransform
from data.views.labelled_crop import LabelledImages, RandomLabelledCrop
from xcit.engine.checkpoints import Score
from xcit.engine.ema import make_ema
from xcit.engine.length import Length
from xcit.engine.loop import Trainer, fit
from xcit.engine.numerics import grad_scaler
from xcit.engine.optimizer import make_optimizer
from xcit.engine.recorder import Recorder
from xcit.engine.run_folder import RunFolder
from xcit.engine.schedule import make_schedule
from xcit.engine.state import TrainingState, read_state
from xcit.engine.task import Target
from xcit.engine.trackers import NullTracker
from xcit.errors import TrainingError
from xcit.preprocessing import Preprocessing
from xcit.tasks import TASKS

CPU = torch.device("cpu")
EPOCHS, UPDATES = 2, 3
BY_EPOCHS = Length(epochs=EPOCHS)
MOMENTS = EPOCHS * (UPDATES + 1)  # after each update and each validation
AUGMENT = {"scale": (0.2, 1.0), "ratio": (0.75, 1.33), "hflip": 0.5, "color_jitter": 0.4, "erase_prob": 0.25}


class Few(Examples):
    """The first 29 digits. `loaded` lists the indices that were read."""

    digits = Digits().train()
    classes = digits.classes

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return 29

    def __getitem__(self, index: int) -> Example:
        self.loaded.append(index)
        return self.digits[index]


class Noting:
    """Wraps a loader and records its batches."""

    def __init__(self, loader: TrainLoader) -> None:
        self.loader = loader
        self.batches: list[LabelledImages] = []

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[LabelledImages]:
        for batch in self.loader.epoch(epoch, start):
            self.batches.append(batch)
            yield batch


class Killed(BaseException):
    """Simulates SIGKILL. No code of the project catches it."""


def begin(order: dict[str, Any] | None = None) -> TrainingState:
    torch.manual_seed(0)
    task = TASKS["classify"](
        xcit.create_model("xcit_n12", dim=32, depth=1, patch_size=8, num_classes=10, drop_path_rate=0.4),
        Target("class", tuple(Few.classes)),
    )
    optimizer = make_optimizer(task, name="adamw", lr=1e-2, weight_decay=0.1, options={})
    identity = {"config": {}, "classes": Few.classes, "order": order or {"train.global_batch_size": 8}}
    return TrainingState(task, optimizer, grad_scaler(CPU, "fp32"), make_ema(task, 0.5), identity)


def go_on(
    path: Path,
    asked_to_stop: Callable[[], str | None] = lambda: None,
    *,
    killed_at: tuple[int, str] | None = None,
    save_every: int | None = None,
    accumulate: int = 2,
    workers: int = 0,
    length: Length = BY_EPOCHS,
    scores: Sequence[float] = (),
    max_time: float | None = None,
) -> tuple[Noting, Few]:
    """Starts the run in this folder, or resumes it.

    killed_at: the step and the event at which the run is killed.
    scores: what the validations of the epochs measure; by default it follows from the weights.
    """
    folder, state = RunFolder(path), begin()
    if folder.last.exists():
        state.load_state_dict(read_state(folder.last), str(folder.last))
    path.mkdir(parents=True, exist_ok=True)
    folder.lock.acquire()

    def die(at: str) -> None:
        if killed_at == (state.step, at):
            raise Killed

    images = Few()
    order = TrainBatches(len(images), 8 // accumulate, seed=3, repeats=3, accumulate=accumulate)
    mixing = Mixing(10, mixup=0.8, cutmix=1.0, switch_prob=0.5, label_smoothing=0.1)
    transform = TrainTransform(Preprocessing(size=(16, 16)), rand_augment="rand-m9-mstd0.5-inc1", **AUGMENT)
    views = [RandomLabelledCrop(transform, mixing)]
    epochs = length.num_epochs(UPDATES)
    loader = Noting(TrainLoader(images, views, order, epochs=epochs, workers=workers, device=CPU))
    schedule = make_schedule(
        state.optimizer,
        num_updates=length.num_updates(UPDATES),
        updates_per_epoch=UPDATES,
        warmup_epochs=1,
        warmup_lr=1e-4,
        cooldown_epochs=0,
        min_lr=1e-5,
    )
    trainer = Trainer(state, state.task, schedule, CPU, "fp32", 8, accumulate, 1.0, log_every=2, seed=0, length=length)
    trainer = replace(trainer, max_time=max_time)
    save = folder.save

    def save_or_die(state: TrainingState, recorder: Recorder, *, score: Score | None = None) -> bool:
        die("its validation's checkpoint" if state.seen == 0 else "its checkpoint")
        return save(state, recorder, score=score)

    def validate(task: Any) -> dict[str, float]:
        die("its validation")
        if scores:
            return {"top1": scores[state.epoch - 1]}
        return {"top1": task.model.head.bias.sum().item()}

    folder.save = save_or_die  # type: ignore[method-assign]
    opened = Recorder(folder.metrics, NullTracker(), after_step=state.step, epochs_done=state.epoch)
    with opened as recorder, closing_lock(folder):
        fit(
            trainer,
            loader,
            validate,
            folder=folder,
            recorder=recorder,
            save_every=save_every,
            asked_to_stop=asked_to_stop,
        )
    return loader, images


@contextmanager
def closing_lock(folder: RunFolder) -> Iterator[None]:
    """The end of the process releases the lock."""
    try:
        yield
    finally:
        folder.lock.release()


def asking_at(moment: int) -> Callable[[], str | None]:
    moments = count()
    return lambda: "SIGTERM" if next(moments) == moment else None


def interrupt(path: Path, moment: int, **how: Any) -> None:
    with pytest.raises(
        TrainingError,
        match=r"stopped by SIGTERM after update \d+; checkpoint: .*to continue, run python train.py resume=",
    ):
        go_on(path, asking_at(moment), **how)


def rows(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in RunFolder(path).metrics.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in found]


def assert_same_run(path: Path, other: Path) -> None:
    assert rows(path) == rows(other)
    mine, its = (torch.load(RunFolder(folder).last, weights_only=True) for folder in (path, other))
    for key in ("step", "epoch", "seen", "logged", "best"):
        assert mine[key] == its[key], key
    for key in ("best_weights", "validated"):
        assert mine.get(key, its[key]) == its[key], key  # a file of version 2 has neither
    for part in ("task", "ema"):
        for key, value in its[part].items():
            assert torch.equal(mine[part][key], value), key


def assert_same_batches(mine: list[LabelledImages], its: list[LabelledImages]) -> None:
    for a, b in zip(mine, its, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
