"""Find a learning rate by a range test: the rate rises from update to update, and the loss shows where it is too high.

    python scripts/find_lr.py                                    # the digits
    python scripts/find_lr.py data=folder data.root=~/photos train.updates=200

Takes the options of train.py (see its --help). train.updates is the number of updates (100), in which optim.lr rises
exponentially from 1e-6 to 1. The test ends early where the loss is four times its smallest value. It prints the
optim.lr at which the smoothed loss falls fastest, draws lr_finder.png in the current folder, or in run_dir=, and writes
nothing else. A test that Ctrl-C ends draws what it has measured. The test begins as the run would: from its initial
weights, with its batches and augmentation.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # because train.py and data/ are not installed

if __name__ == "__main__":  # answers --help and mistakes before torch is imported
    from xcit.start import answer

    answer(str(Path(__file__).parents[1] / "train.py"), __doc__)

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from statistics import fmean
from typing import Any

import hydra
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch.optim import Optimizer

import train
from data.datasets import DATASETS
from data.examples import target_statistics
from scripts.save_picture import save_picture
from train import TABLES, check, new_model, new_state, train_batches
from xcit.command import guarded, run
from xcit.config import TrainConfig
from xcit.config.composition import read_config, require_target
from xcit.engine import distributed
from xcit.engine.freezing import freeze, frozen_parts
from xcit.engine.length import Length
from xcit.engine.loop import Trainer
from xcit.engine.optimizer import peak_lr
from xcit.engine.progress import Progress
from xcit.engine.resume import read_start
from xcit.engine.task import Target, input_of
from xcit.errors import InputError
from xcit.signals import Stopped
from xcit.tasks import TASKS

LOWEST, HIGHEST = 1e-6, 1.0
"""Values of optim.lr at the first and the last update."""
UPDATES, FEWEST = 100, 10
NEIGHBOURS = 3
"""The smoothed loss is a mean over so many updates to each side, taken twice. A mean over the past alone would lag."""
DIVERGED = 4.0
"""The test ends where the smoothed loss is so many times its smallest value."""


@dataclass
class Rising:
    """A schedule: the rate rises exponentially over the updates, from `first` to `last`."""

    optimizer: Optimizer
    first: float
    last: float
    updates: int

    def step_update(self, num_updates: int) -> None:
        lr = rate(num_updates, self.updates, self.first, self.last)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)  # of optim.layer_decay


def rate(update: int, updates: int, first: float = LOWEST, last: float = HIGHEST) -> float:
    return first * (last / first) ** (update / (updates - 1))


def find(given: TrainConfig) -> None:
    updates = given.train.updates or UPDATES
    if updates < FEWEST:
        raise InputError(f"train.updates={updates}: must be at least {FEWEST} to see the loss fall and rise")
    if given.resume != "none":
        raise InputError(f"resume={given.resume}: the test begins as a new run does; init_from= takes a run's weights")
    if given.train.batch_size:
        raise InputError(f"train.batch_size={given.train.batch_size}: is for train.py; give train.accumulate here")
    with distributed.session() as device, Progress() as progress:
        check(given, device)
        trainer, batches = prepare(given, updates, progress, device)
        step = progress.begin("learning rate range test", updates, "updates")
        losses: list[float] = []
        rates = [rate(update, updates) for update in range(updates)]

        def save(suggested: float | None = None) -> Path:
            figure = draw(rates[: len(losses)], losses, suggested)
            return save_picture(given.run_dir, "lr_finder.png", lambda file: figure.savefig(file, format="png"))

        try:
            while len(losses) < updates and not has_diverged(losses):
                trainer.schedule_lr()
                measured = trainer.update(batches, trainer.position(updates))["loss"]
                losses.append(distributed.mean(measured))
                step.advance()
        except Stopped as stopped:
            if losses and distributed.is_main():
                raise Stopped(f"{stopped} after {len(losses)} of {updates} updates; {save()} shows them") from None
            raise
        progress.end()
        if distributed.is_main():
            suggested = suggest(rates[: len(losses)], losses)
            print(f"{save(suggested)}: the loss falls fastest at optim.lr={suggested:.2g}")


def prepare(given: TrainConfig, updates: int, progress: Progress, device: Any) -> tuple[Trainer, Iterator[Any]]:
    """The trainer of the run with the rising rate, and its batches, epoch after epoch."""
    progress.begin(f"reading the list of images, data={given.data.name}")
    examples = DATASETS[given.data.name](**given.data.options).train()
    config = given.scaled(len(examples), distributed.world_size())
    task_class = TASKS[config.task.name]
    require_target(config.task.name, task_class.target_kinds, config.data.name, examples.target_kind)
    target = Target(examples.target_kind, tuple(examples.classes), **target_statistics(examples))

    progress.begin("building the model" + (" and reading its weights" if config.initial_weights else ""))
    start = read_start(config.init_from, config.task.name, config.model.name, examples.classes)
    model = new_model(config, task_class.num_outputs(target), config.initial_weights)
    task = task_class(model, target, **config.task.options).to(device)
    distributed.synchronise_batchnorm(task, device)
    freeze(model, config.train.freeze)
    preprocessing = input_of(task, model, config.data.input_values, config.data.size, config.crop_ratio)
    state = new_state(config, {}, task, examples, preprocessing, device)
    if start:
        state.load_weights(start, f"init_from={config.init_from}")
    loader = train_batches(config, examples, preprocessing, Length(updates=updates), device)
    with distributed.main_first():
        task.begin_training(device)
    task.train()
    frozen = frozen_parts(model, config.train.freeze, batchnorms=config.train.freeze_batchnorm)
    for part in frozen:
        part.eval()
    first, last = (peak_lr(lr, config.train.global_batch_size) for lr in (LOWEST, HIGHEST))
    trainer = Trainer(
        state,
        distributed.parallelise(task, device),
        schedule=Rising(state.optimizer, first, last, updates),
        device=device,
        **config.train.trainer,
        **config.optim.model_dump(include={"clip_norm", "clip_by"}),
        seed=config.seed,
        length=Length(updates=updates),
        frozen=frozen,
    )
    return trainer, chain.from_iterable(loader.epoch(epoch) for epoch in count())


def smoothed(losses: Sequence[float]) -> list[float]:
    """The losses, averaged with their neighbours."""
    found = list(losses)
    for _ in range(2):
        found = [fmean(found[max(0, n - NEIGHBOURS) : n + NEIGHBOURS + 1]) for n in range(len(found))]
    return found


def has_diverged(losses: Sequence[float]) -> bool:
    if not losses:
        return False
    averages = smoothed(losses)
    return not math.isfinite(losses[-1]) or averages[-1] > DIVERGED * min(averages)


def suggest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which the smoothed loss falls fastest over the logarithm of the rate, before its smallest value.

    Raises:
        InputError: the loss never falls.
    """
    averages = [loss for loss in smoothed(losses) if math.isfinite(loss)]
    lowest = averages.index(min(averages)) if averages else 0
    if lowest == 0:
        raise InputError(
            f"the loss does not fall between optim.lr={LOWEST:g} and {rates[-1]:.2g}; more train.updates help"
        )
    slopes = [averages[n + 1] - averages[n] for n in range(lowest)]  # the logarithm rises in equal steps
    return rates[slopes.index(min(slopes))]


def draw(rates: Sequence[float], losses: Sequence[float], suggested: float | None) -> Figure:
    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, linewidth=1, alpha=0.4, label="loss")
    averages = smoothed(losses)
    axes.plot(rates, averages, linewidth=1.6, label="smoothed")
    if suggested is not None:
        axes.axvline(suggested, color="gray", linestyle="--", label=f"optim.lr={suggested:.2g}")
    finite = [loss for loss in averages if math.isfinite(loss)]
    if finite:
        axes.set_ylim(min(finite) - 0.1 * abs(min(finite)), min(max(finite), 2 * finite[0]) * 1.05)
    axes.set(xscale="log", xlabel="optim.lr", ylabel="training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
@guarded
def main(raw: DictConfig) -> None:
    find(read_config(TrainConfig, raw, TABLES))


if __name__ == "__main__":
    run(main, train.__file__)
