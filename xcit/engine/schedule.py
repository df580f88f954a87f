"""The learning rate and the weight decay, as functions of the number of updates done."""

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler
from torch.optim import Optimizer

from ..errors import print_note
from . import distributed

LrEvery = Literal["update", "epoch"]
"""How often the learning rate changes."""


class Schedule(Protocol):
    """Sets the learning rates of an optimizer, and perhaps its weight decay."""

    def step_update(self, num_updates: int) -> None:
        """Set the values for the next update. num_updates: updates done."""


def make_schedule(
    optimizer: Optimizer,
    *,
    num_updates: int,
    updates_per_epoch: int,
    warmup_epochs: float,
    warmup_lr: float,
    cooldown_epochs: float,
    min_lr: float,
    schedule: Literal["cosine", "step", "poly"] = "cosine",
    milestones: Sequence[float] = (),
    decay_rate: float = 0.1,
    power: float = 1.0,
    warmup_updates: int | None = None,
    lr_every: LrEvery = "update",
    warmup_prefix: bool = False,
    weight_decay_end: float | None = None,
) -> Schedule:
    """timm's schedule; call `step_update(updates done)` before each update.

    The rate rises linearly from warmup_lr during the warm-up, then follows a cosine or a polynomial that starts at
    update 0 (as in DeiT), reaches min_lr cooldown_epochs before the end, and stays there. `num_updates` counts all
    three. If warm-up and cool-down would fill the run, both shrink in proportion, so that half of it is left between
    them. If the peak is below warmup_lr or min_lr, as with a small batch, the rate never goes above the peak.

    Args:
        schedule: "cosine"; "poly", (1 - progress) ** power; or "step", which multiplies the rate by decay_rate at each
            of the milestones (in epochs) and has neither min_lr nor cool-down.
        warmup_updates: the length of the warm-up in updates; None means warmup_epochs.
        lr_every: "update" changes the rate before each update, "epoch" once per epoch: see `LaggingCosine`.
        warmup_prefix: whether the cosine starts at the end of the warm-up (as in DINO) instead of at update 0.
        weight_decay_end: the weight decay at the end of the run: see `CosineWeightDecay`. None keeps it constant.
    """
    epochs = num_updates / updates_per_epoch
    if warmup_updates is not None:
        warmup_epochs = warmup_updates / updates_per_epoch
    peak = max(group["lr"] for group in optimizer.param_groups)
    shrink = 1.0
    if warmup_epochs + cooldown_epochs >= epochs:
        shrink = 0.5 * epochs / (warmup_epochs + cooldown_epochs)
    options = {
        "t_initial": max(1, round((epochs - shrink * cooldown_epochs) * updates_per_epoch)),
        "lr_min": min(min_lr, peak),
        "warmup_t": round(shrink * warmup_epochs * updates_per_epoch),
        "warmup_lr_init": min(warmup_lr, peak),
        "t_in_epochs": False,
        "warmup_prefix": warmup_prefix,
    }
    if warmup_prefix:
        options["t_initial"] = max(1, options["t_initial"] - options["warmup_t"])
    if lr_every == "epoch" and epochs <= 2 and warmup_epochs and distributed.is_main():
        print_note(
            f"optim.lr_every=epoch: the first two epochs have the learning rate {options['warmup_lr_init']:g}, and "
            "this run has no others; optim.lr_every=update lets it rise"
        )
    lr: Schedule
    if schedule == "step":
        late = [milestone for milestone in milestones if milestone >= epochs]
        if late and distributed.is_main():
            print_note(f"optim.milestones={list(milestones)}: the run ends after epoch {epochs:g}, before {late[0]:g}")
        # timm's milestones count from 1: with 10, the tenth update is the first one with the lower rate.
        decay_t = [round(milestone * updates_per_epoch) + 1 for milestone in milestones]
        del options["t_initial"], options["lr_min"]
        options["warmup_prefix"] = False  # milestones count from the start of the run
        lr = MultiStepLRScheduler(optimizer, decay_t, decay_rate, **options)
    elif schedule == "poly":
        lr = PolyLRScheduler(optimizer, power=power, **options)
    elif lr_every == "epoch":
        lr = LaggingCosine(optimizer, updates_per_epoch, **options)
    else:
        lr = CosineLRScheduler(optimizer, **options)
    if weight_decay_end is None:
        return lr
    return CosineWeightDecay(optimizer, lr, end=weight_decay_end, num_updates=num_updates)


class LaggingCosine(CosineLRScheduler):
    """The schedule of the authors' runs: the rate changes once per epoch, and one epoch late.

    Their loop, which is DeiT's, sets the rate of epoch e at the end of epoch e, and epoch e + 1 is trained with it. So
    epochs 0 and 1 both have the rate of epoch 0.
    """

    def __init__(self, optimizer: Optimizer, updates_per_epoch: int, **options: Any) -> None:
        super().__init__(optimizer, **options)
        self.updates_per_epoch = updates_per_epoch

    def step_update(self, num_updates: int, metric: Any = None) -> None:
        epoch = max(0, num_updates // self.updates_per_epoch - 1)
        super().step_update(epoch * self.updates_per_epoch, metric)


class CosineWeightDecay:
    """A learning rate schedule, and a weight decay that goes from the optimizer's to `end` along a cosine (DINO).

    Parameter groups without weight decay keep none.
    """

    def __init__(self, optimizer: Optimizer, lr: Schedule, *, end: float, num_updates: int) -> None:
        self.lr, self.end, self.num_updates = lr, end, num_updates
        self.decayed = [(group, group["weight_decay"]) for group in optimizer.param_groups if group["weight_decay"]]

    def step_update(self, num_updates: int) -> None:
        self.lr.step_update(num_updates)
        for group, start in self.decayed:
            group["weight_decay"] = cosine(start, self.end, num_updates / self.num_updates)


def cosine(start: float, end: float, progress: float) -> float:
    """From start to end along half a cosine. progress: the share of the way, from 0 to 1."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))
