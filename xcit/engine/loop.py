"""The training loop: epochs of updates, each followed by a validation and a checkpoint."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import nn

from ..checkpoint import better_weights, describe_lag
from ..errors import StoppedTrainingError, TrainingError, print_note
from . import distributed
from .cuda_graph import CapturedPass
from .length import Length
from .numerics import autocast
from .optimizer import ClipBy, clip_gradients
from .progress import SILENT, Progress, TrainingProgress, duration
from .recorder import Recorder
from .run_folder import RunFolder
from .schedule import Schedule
from .state import TrainingState, seed_step
from .stopping import TimeLimit
from .task import Evaluator, Losses, Position, Task


class EpochLoader(Protocol):
    """Batches of one process. The epoch number alone determines them. The first `start` are skipped."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]: ...


@dataclass(frozen=True)
class Trainer:
    """Runs updates. They change only `state`.

    Args:
        module: the state's task as it is called in training (compiled, in DDP).
        global_batch_size: images of an update, over all processes and passes.
        accumulate: forward passes for each update, over equal shares of its batch.
        clip_norm: the largest norm of the gradients, or None.
        clip_by: whether that is the norm over all parameters, or of each parameter.
        frozen: parts of the task that are not trained; they stay in evaluation mode.
        max_time: hours after which `fit` ends the run after the update or validation in progress, or None.
        cuda_graph: whether the forward and the backward pass are one CUDA graph; see cuda_graph.py.
    """

    state: TrainingState
    module: nn.Module
    schedule: Schedule
    device: torch.device
    precision: str
    global_batch_size: int
    accumulate: int
    clip_norm: float | None
    log_every: int
    seed: int
    length: Length
    frozen: Sequence[nn.Module] = ()
    clip_by: ClipBy = "all"
    max_time: float | None = None
    cuda_graph: bool = False

    def train_epoch(self, loader: EpochLoader, recorder: Recorder, progress: TrainingProgress) -> Iterator[None]:
        """Make the updates that are left of an epoch, yielding after each.

        Only logging (and the fp16 scaler) waits for the device.

        Raises:
            TrainingError: the loss is not finite.
        """
        state = self.state
        state.task.train()
        for part in self.frozen:
            part.eval()
        state.loss_sums = {name: total.to(self.device) for name, total in state.loss_sums.items()}

        # Find the position in this epoch, and the last update to run in it.
        updates_per_epoch = len(loader) // self.accumulate
        done = state.seen // self.global_batch_size
        last = done + self.length.limit_updates(updates_per_epoch - done, step=state.step)
        batches = loader.epoch(state.epoch, start=done * self.accumulate)
        progress.begin_epoch(state.epoch + 1, last, done, images_per_update=self.global_batch_size)

        timed_step, timed_at = state.step, time.perf_counter()
        for update in range(done + 1, last + 1):
            lr = self.schedule_lr()
            position = self.position(updates_per_epoch)
            state.add_losses(self.update(batches, position))
            progress.advance()
            if update % self.log_every == 0 or update == last:
                losses = state.mean_losses()
                if not all(math.isfinite(loss) for loss in losses.values()):
                    name, loss = next((name, loss) for name, loss in losses.items() if not math.isfinite(loss))
                    name = "the loss" if name == "loss" else f"the loss {name!r}"
                    raise not_finite(f"{name} is {loss} by step {state.step} of epoch {state.epoch + 1} (lr {lr:.3g})")
                speed = (state.step - timed_step) * self.global_batch_size / (time.perf_counter() - timed_at)
                measured = losses | {"lr": lr, "images_per_second": speed}
                recorder.log({"step": state.step, "epoch": state.epoch + 1, "split": "train", **measured})
                shown = {name: losses[name] for name in state.task.on_training_line if name in losses}
                progress.show(losses["loss"], lr, speed, shown)
                state.begin_log_window()
                timed_step, timed_at = state.step, time.perf_counter()
            yield
        state.epoch, state.seen = state.epoch + 1, 0

    def position(self, updates_per_epoch: int) -> Position:
        return Position(self.state.step, self.length.num_updates(updates_per_epoch), updates_per_epoch)

    def schedule_lr(self) -> float:
        """Set the learning rate, and what else is scheduled, for the next update; return the learning rate."""
        self.schedule.step_update(self.state.step)
        return max(group["lr"] for group in self.state.optimizer.param_groups)

    @cached_property
    def learn(self) -> Callable[[Any], Losses]:
        """Computes the losses of a batch and adds the gradients."""
        return CapturedPass(self.forward_backward, self.module) if self.cuda_graph else self.forward_backward

    def forward_backward(self, batch: Any) -> Losses:
        with autocast(self.device, self.precision):
            losses = self.module(batch)
            self.state.scaler.scale(losses["loss"] / self.accumulate).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def update(self, batches: Iterator[Any], position: Position) -> Losses:
        """One update; returns the mean losses of this process's batch, still on the device."""
        state = self.state
        totals: Losses = {}

        # Compute gradients: a forward and a backward pass over each share of the batch.
        for part in range(self.accumulate):
            batch = next(batches)
            # After the loader, which may use the same generator in this process.
            seed_step(self.seed, state.step, part, distributed.rank())
            more = part < self.accumulate - 1
            with distributed.gradients_stay(self.module, more):
                losses = self.learn(batch)
            for name, loss in losses.items():
                share = loss / self.accumulate
                totals[name] = totals[name] + share if name in totals else share

        # Take the optimizer step, with a task hook before and after it.
        state.scaler.unscale_(state.optimizer)
        if self.clip_norm is not None:
            clip_gradients(state.task.parameters(), self.clip_norm, self.clip_by)
        state.task.before_step(position, state.optimizer)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()
        state.step += 1
        state.seen += self.global_batch_size
        state.task.after_update(replace(position, update=state.step))
        if state.ema:
            state.ema.update(state.task, state.step)
        return totals


def fit(
    trainer: Trainer,
    loader: EpochLoader,
    validate: Callable[[Task], dict[str, float]],
    *,
    folder: RunFolder,
    recorder: Recorder,
    save_every: int | None = None,
    best_by: Literal["better", "raw"] = "better",
    asked_to_stop: Callable[[], str | None] = lambda: None,
    progress: Progress = SILENT,
) -> None:
    """Train from the current state to the end of the run; validate both sets of weights after each epoch.

    best.pt is written after the epochs in which one of the two, or the raw weights with best_by="raw", were better than
    ever before. Notes at the end tell why `Length.patience` or `Trainer.max_time` ended it early, and of an EMA that
    lags behind.

    Args:
        save_every: updates between two checkpoints within an epoch, or None.
        asked_to_stop: called by all processes after each update and each validation; returns the name of the signal
            that asks the run to stop, or None.

    Raises:
        TrainingError: a loss is not finite, or a signal stopped the run; then its checkpoint is written.
    """
    state, length = trainer.state, trainer.length
    updates_per_epoch = len(loader) // trainer.accumulate
    report = TrainingProgress(
        progress,
        epochs=length.num_epochs(updates_per_epoch),
        updates=length.num_updates(updates_per_epoch),
        updates_done=state.step,
    )
    saved, score, time_limit, is_over = True, None, TimeLimit(trainer.max_time), False
    while not is_over and not length.is_reached(**state.position):
        # An epoch of updates. A checkpoint within it is written only while the weights are finite.
        for _ in trainer.train_epoch(loader, recorder, report):
            asking, is_over = asked_to_stop(), time_limit.is_over()
            if asking or is_over or (save_every and state.step % save_every == 0):
                require_finite(state)
                saved, score = folder.save(state, recorder), None
            if asking:
                raise stopped(asking, state, folder, saved)
            if is_over:
                break
        if is_over:
            break

        # Validation.
        results = {weights: validate(task) for weights, task in state.weights().items()}
        for weights, measured in results.items():
            row = {"step": state.step, "epoch": state.epoch, "split": "val", "weights": weights}
            recorder.log(row | measured)
        decisive = ("loss", state.headline)  # others may be NaN: the IoU of a class that never occurs
        if any(not math.isfinite(measured.get(key, 0.0)) for measured in results.values() for key in decisive):
            hint = "" if state.headline == "loss" else f" ({state.headline} may need other validation images)"
            raise not_finite(f"validation after epoch {state.epoch} measured {results}{hint}")

        # The epoch's checkpoint.
        state.validated = {weights: measured[state.headline] for weights, measured in results.items()}
        better = "raw" if best_by == "raw" else better_weights(state.validated, state.headline)
        score = (state.validated[better], better)
        progress.begin(f"saving {folder.last}")
        saved = folder.save(state, recorder, score=score)
        progress.end()
        of_task = {name: results["raw"][name] for name in state.task.on_validation_line if name in results["raw"]}
        report.epoch_done(state.epoch, results, state.headline, of_task)
        if distributed.is_main():
            for line in state.task.advise(results["raw"], trainer.position(updates_per_epoch)):
                print_note(line)
        asking, is_over = asked_to_stop(), time_limit.is_over()
        if asking:
            raise stopped(asking, state, folder, saved)

    if not saved and not folder.save(state, recorder, score=score):
        raise TrainingError(f"{folder.last}: the last checkpoint of the run could not be written; it has ended")
    early = why_early(trainer, report.updates, folder) if state.step < report.updates else None
    if distributed.is_main():
        for note in filter(None, [early, describe_lag(state.validated, state.headline)]):
            print_note(note)


def why_early(trainer: Trainer, updates: int, folder: RunFolder) -> str:
    """Why a run ended before its last update. updates: of the whole run."""
    state, patience = trainer.state, trainer.length.patience
    done = f"the run ended after update {state.step} of {updates}"
    if trainer.length.is_stale(state.step, state.epoch, state.best_epoch):
        best = f"{state.headline} has not improved since epoch {state.best_epoch}"
        return f"train.patience={patience}: {best}, so {done}"
    if state.seen and type(state.task).fit_to_validation is not Task.fit_to_validation:
        done += ", and what validations choose, such as thresholds, is from before this epoch"
    goes_on = f"resume={folder.path} and a new run_dir= train the others"
    return f"train.max_time: the time of {duration(3600 * (trainer.max_time or 0))} is over, so {done}; {goes_on}"


def stopped(asking: str, state: TrainingState, folder: RunFolder, saved: bool) -> StoppedTrainingError:
    checkpoint = f"checkpoint: {folder.last}" if saved else f"{folder.last} could not be written and is an older one"
    return StoppedTrainingError(
        f"stopped by {asking} after update {state.step}; {checkpoint}; "
        f"to continue, run python train.py resume={folder.path}"
    )


def require_finite(state: TrainingState) -> None:
    """Refuse to write a checkpoint within an epoch if a loss since the last row, or a weight, is not finite."""
    losses_are_finite = all(math.isfinite(loss) for loss in state.mean_losses().values())
    weights = torch.stack([parameter.detach().isfinite().all() for parameter in state.task.parameters()])
    if not losses_are_finite or not weights.all():
        what = "weights are" if losses_are_finite else "the loss is"
        raise not_finite(f"{what} not finite by step {state.step} of epoch {state.epoch + 1}")


def not_finite(what: str) -> TrainingError:
    return TrainingError(
        f"{what}: training stopped; any existing checkpoint is from an earlier update; "
        "try a lower optim.lr or train.precision=fp32"
    )


def evaluate(task: Task, batches: Iterable[Any], device: torch.device, precision: str) -> dict[str, float]:
    """Validate the task in evaluation mode, with its evaluator, over the batches of all processes."""
    evaluator = update_evaluator(task, batches, device, precision)
    task.fit_to_validation(evaluator)
    return evaluator.compute()


@torch.inference_mode()
def update_evaluator(task: Task, batches: Iterable[Any], device: torch.device, precision: str) -> Evaluator:
    """The task's evaluator after all batches of this process."""
    was_training = task.training
    task.eval()
    evaluator = task.evaluator()
    for batch in batches:
        with autocast(device, precision):
            evaluator.update(batch)
    task.train(was_training)
    return evaluator
