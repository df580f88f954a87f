"""Linear regression as a tiny task, and a function that trains it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import nn

from xcit.engine.ema import make_ema
from xcit.engine.length import Length
from xcit.engine.loop import Trainer, fit
from xcit.engine.numerics import grad_scaler
from xcit.engine.optimizer import make_optimizer
from xcit.engine.recorder import Recorder
from xcit.engine.run_folder import RunFolder
from xcit.engine.schedule import make_schedule
from xcit.engine.state import TrainingState
from xcit.engine.task import Losses, Target, Task
from xcit.engine.trackers import NullTracker

CPU = torch.device("cpu")


def target_of(num_classes: int) -> Target:
    """Returns the target of a data set with this number of classes."""
    return Target("class", tuple(str(number) for number in range(num_classes)))


class ToyTask(Task):
    target_kinds = ("values",)
    headline = "score"

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__(nn.Linear(4, 1), Target("values"))
        with torch.no_grad():
            self.model.weight.copy_(torch.tensor([[0.3, -0.2, 0.1, 0.4]]))
            self.model.bias.fill_(0.1)
        self.drop = nn.Dropout(noise)

    def forward(self, batch: SimpleNamespace) -> Losses:
        return {"loss": (self.model(self.drop(batch.x)) - batch.y).square().mean()}


class ToyLoader:
    """Yields the same 24 samples in every epoch, in `batches` equal parts. The batch with index `spoilt` is NaN."""

    def __init__(self, batches: int, spoilt: int | None = None) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(24, 4, generator=generator)
        self.y = self.x.sum(1, keepdim=True)
        self.batches, self.spoilt = batches, spoilt

    def __len__(self) -> int:
        return self.batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[SimpleNamespace]:
        parts = list(zip(self.x.chunk(self.batches), self.y.chunk(self.batches), strict=True))
        for number, (x, y) in enumerate(parts[start:], start):
            yield SimpleNamespace(x=x * float("nan") if number == self.spoilt else x, y=y)


def run(
    folder: Path,
    loader: ToyLoader,
    *,
    epochs: int = 1,
    accumulate: int = 1,
    clip_norm: float | None = None,
    lr: float = 0.1,
    ema_decay: float | None = None,
    precision: str = "fp32",
    noise: float = 0.0,
    scores: list[float] | None = None,
    log_every: int = 1,
    task: ToyTask | None = None,
    keep_last: int = 1,
    keep_best: int = 1,
    measure: Callable[[Any], dict[str, float]] | None = None,
    best_by: Literal["better", "raw"] = "better",
    patience: int | None = None,
    select: str | None = None,
    max_time: float | None = None,
) -> tuple[TrainingState, list[dict[str, Any]]]:
    """Trains the toy task with plain SGD. Returns the state and the rows of metrics.jsonl."""
    task = task or ToyTask(noise)
    optimizer = make_optimizer(task, name="momentum", lr=lr, weight_decay=0.0, options={"momentum": 0.0})
    state = TrainingState(task, optimizer, grad_scaler(CPU, precision), make_ema(task, ema_decay), select=select)
    updates = len(loader) // accumulate
    schedule = make_schedule(
        optimizer,
        num_updates=epochs * updates,
        updates_per_epoch=updates,
        warmup_epochs=0,
        warmup_lr=0,
        cooldown_epochs=0,
        min_lr=lr,
    )
    trainer = Trainer(
        state,
        task,
        schedule,
        CPU,
        precision,
        24 // updates,
        accumulate,
        clip_norm,
        log_every=log_every,
        seed=0,
        length=Length(epochs=epochs, patience=patience),
        max_time=max_time,
    )
    run_folder = RunFolder(folder / "run")
    run_folder.keep(last=keep_last, best=keep_best)
    run_folder.create()
    left = iter(scores or [0.0] * 2 * epochs)
    with Recorder(run_folder.metrics, NullTracker(), after_step=0, epochs_done=0) as recorder:
        validate = measure or (lambda task: {"score": next(left)})
        fit(trainer, loader, validate, folder=run_folder, recorder=recorder, best_by=best_by)
    return state, [json.loads(line) for line in run_folder.metrics.read_text().splitlines()]
