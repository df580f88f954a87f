"""The training loop: epochs of updates, each epoch followed by validation and a checkpoint."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

from ..errors import TrainingError
from . import distributed
from .numerics import autocast
from .progress import Progress
from .recorder import Recorder
from .run_folder import RunFolder
from .state import TrainingState, seed_step
from .task import Task


class EpochLoader(Protocol):
    """Batches of one process; each epoch's follow from its number alone."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int) -> Iterator[Any]: ...


@dataclass(frozen=True)
class Trainer:
    """How an update is made; what it changes is in the `TrainingState`.

    module: the state's task as it is called in training (compiled, in DDP).
    global_batch_size: images of an update, over all processes and passes.
    accumulate: forward passes for each update, over equal shares of its batch.
    clip_norm: bound on the gradient's norm over all parameters, or None.
    frozen: parts of the task that are not trained, and stay in evaluation mode.
    """

    state: TrainingState
    module: nn.Module
    schedule: CosineLRScheduler
    device: torch.device
    precision: str
    global_batch_size: int
    accumulate: int
    clip_norm: float | None
    log_every: int
    seed: int
    frozen: Sequence[nn.Module] = ()

    def train_epoch(self, loader: EpochLoader, recorder: Recorder, progress: Progress) -> None:
        """Every update of one epoch. Nothing waits for the device but the logging (and fp16's scaler).

        Raises:
            TrainingError: the loss is not finite.
        """
        state = self.state
        state.task.train()
        for part in self.frozen:
            part.eval()
        batches = loader.epoch(state.epoch)
        updates = len(loader) // self.accumulate
        loss_sum, logged_at, since = torch.zeros((), device=self.device), time.perf_counter(), 0
        for update in range(1, updates + 1):
            lr = self.schedule_lr()
            loss_sum += self.update(batches)
            since += 1
            progress.advance()
            if update % self.log_every == 0 or update == updates:
                loss = distributed.mean(loss_sum / since)
                if not math.isfinite(loss):
                    raise not_finite(
                        f"the loss is {loss} by step {state.step} of epoch {state.epoch + 1} (lr {lr:.3g})"
                    )
                speed = since * self.global_batch_size / (time.perf_counter() - logged_at)
                measured = {"loss": loss, "lr": lr, "images_per_second": speed}
                recorder.log({"step": state.step, "epoch": state.epoch + 1, "split": "train", **measured})
                progress.show(loss, lr, speed)
                loss_sum, logged_at, since = torch.zeros((), device=self.device), time.perf_counter(), 0
        state.epoch += 1

    def schedule_lr(self) -> float:
        """Set the rate for the next update and return it."""
        self.schedule.step_update(self.state.step)
        return max(group["lr"] for group in self.state.optimizer.param_groups)

    def update(self, batches: Iterator[Any]) -> torch.Tensor:
        """One update; returns the mean loss of this process's batch, still on the device."""
        state = self.state
        total = torch.zeros((), device=self.device)
        for part in range(self.accumulate):
            batch = next(batches)
            # After the loader, which may use the same generator in this process.
            seed_step(self.seed, state.step, part, distributed.rank())
            more = part < self.accumulate - 1
            with distributed.gradients_stay(self.module, more), autocast(self.device, self.precision):
                loss = self.module(batch) / self.accumulate
                state.scaler.scale(loss).backward()
            total += loss.detach()
        if self.clip_norm is not None:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.task.parameters(), self.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()
        state.step += 1
        if state.ema:
            state.ema.update(state.task)
        return total


def fit(
    trainer: Trainer,
    loader: EpochLoader,
    validate: Callable[[Task], dict[str, float]],
    *,
    epochs: int,
    folder: RunFolder,
    recorder: Recorder,
) -> None:
    """Train from where the state stands to the end, validating both sets of weights after each epoch."""
    state = trainer.state
    with Progress(epochs, len(loader) // trainer.accumulate, state.epoch, shown=distributed.is_main()) as progress:
        while state.epoch < epochs:
            trainer.train_epoch(loader, recorder, progress)
            results = {weights: validate(task) for weights, task in state.weights().items()}
            for weights, measured in results.items():
                row = {"step": state.step, "epoch": state.epoch, "split": "val", "weights": weights}
                recorder.log(row | measured)
            if any(not math.isfinite(value) for measured in results.values() for value in measured.values()):
                raise not_finite(f"validation after epoch {state.epoch} measured {results}")
            score = results["ema" if state.ema else "raw"][state.headline]
            is_best = state.best is None or score > state.best
            state.best = score if is_best else state.best
            if distributed.is_main():
                folder.save(state, is_best=is_best)
            progress.epoch_done(state.epoch, results, state.headline)


def not_finite(what: str) -> TrainingError:
    return TrainingError(
        f"{what}: the run stops here, and a checkpoint that it has is from before; "
        "try a lower optim.lr or train.precision=fp32"
    )


@torch.inference_mode()
def evaluate(task: Task, batches: Iterable[Any], device: torch.device, precision: str) -> dict[str, float]:
    """What the task's evaluator measures over the batches of all processes, in evaluation mode."""
    was_training = task.training
    task.eval()
    evaluator = task.evaluator()
    for batch in batches:
        with autocast(device, precision):
            evaluator.update(batch)
    task.train(was_training)
    return evaluator.compute()
