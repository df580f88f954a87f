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
    """Batches of one process; each epoch's follow from its number alone. `start` of them are left out."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]: ...


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

    def train_epoch(self, loader: EpochLoader, recorder: Recorder, progress: Progress) -> Iterator[None]:
        """The updates that are left of an epoch, yielding after each.

        Nothing waits for the device but the logging (and fp16's scaler).

        Raises:
            TrainingError: the loss is not finite.
        """
        state = self.state
        state.task.train()
        for part in self.frozen:
            part.eval()
        state.loss_sum = state.loss_sum.to(self.device)
        done, updates = state.seen // self.global_batch_size, len(loader) // self.accumulate
        batches = loader.epoch(state.epoch, start=done * self.accumulate)
        timed_step, timed_at = state.step, time.perf_counter()
        for update in range(done + 1, updates + 1):
            lr = self.schedule_lr()
            state.loss_sum += self.update(batches)
            progress.advance()
            if update % self.log_every == 0 or update == updates:
                loss = distributed.mean(state.loss_sum / (state.step - state.logged))
                if not math.isfinite(loss):
                    raise not_finite(
                        f"the loss is {loss} by step {state.step} of epoch {state.epoch + 1} (lr {lr:.3g})"
                    )
                speed = (state.step - timed_step) * self.global_batch_size / (time.perf_counter() - timed_at)
                measured = {"loss": loss, "lr": lr, "images_per_second": speed}
                recorder.log({"step": state.step, "epoch": state.epoch + 1, "split": "train", **measured})
                progress.show(loss, lr, speed)
                state.loss_sum.zero_()
                state.logged = timed_step = state.step
                timed_at = time.perf_counter()
            yield
        state.epoch, state.seen = state.epoch + 1, 0

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
        state.seen += self.global_batch_size
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
    save_every: int | None = None,
    asked_to_stop: Callable[[], str | None] = lambda: None,
) -> None:
    """Train from where the state stands to the end, validating both sets of weights after each epoch.

    save_every: updates after which a checkpoint is written within an epoch, too, or None.
    asked_to_stop: tells all processes alike, after each update and each validation, who asks if someone does.

    Raises:
        TrainingError: a loss is not finite, or someone asked to stop, and the checkpoint for going on is written.
    """
    state, updates = trainer.state, len(loader) // trainer.accumulate
    done = state.seen // trainer.global_batch_size
    with Progress(epochs, updates, state.epoch, done, shown=distributed.is_main()) as progress:
        while state.epoch < epochs:
            for _ in trainer.train_epoch(loader, recorder, progress):
                asking = asked_to_stop()
                if asking or (save_every and state.step % save_every == 0):
                    require_finite(state)
                    folder.save(state, is_best=False)
                if asking:
                    raise stopped(asking, state, folder)
            results = {weights: validate(task) for weights, task in state.weights().items()}
            for weights, measured in results.items():
                row = {"step": state.step, "epoch": state.epoch, "split": "val", "weights": weights}
                recorder.log(row | measured)
            if any(not math.isfinite(value) for measured in results.values() for value in measured.values()):
                raise not_finite(f"validation after epoch {state.epoch} measured {results}")
            score = results["ema" if state.ema else "raw"][state.headline]
            is_best = state.best is None or score > state.best
            state.best = score if is_best else state.best
            folder.save(state, is_best=is_best)
            progress.epoch_done(state.epoch, results, state.headline)
            asking = asked_to_stop()
            if asking:
                raise stopped(asking, state, folder)


def stopped(asking: str, state: TrainingState, folder: RunFolder) -> TrainingError:
    return TrainingError(
        f"stopped by {asking} after update {state.step}, which is in {folder.last}; "
        f"the same command with resume={folder.path} goes on from there"
    )


def require_finite(state: TrainingState) -> None:
    """Keep what has gone astray since the last row out of the checkpoint within an epoch."""
    loss = distributed.mean(state.loss_sum)
    weights = torch.stack([parameter.detach().isfinite().all() for parameter in state.task.parameters()])
    if not math.isfinite(loss) or not weights.all():
        what = "the loss is" if not math.isfinite(loss) else "weights are"
        raise not_finite(f"{what} not finite by step {state.step} of epoch {state.epoch + 1}")


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
