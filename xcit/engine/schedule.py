"""The learning rate: warm-up, cosine, cool-down. It is a function of the number of updates done."""

from typing import Any, Literal

from timm.scheduler import CosineLRScheduler
from torch.optim import Optimizer

from ..errors import print_note
from . import distributed

LrEvery = Literal["update", "epoch"]
"""How often the learning rate changes."""


def make_schedule(
    optimizer: Optimizer,
    *,
    num_updates: int,
    updates_per_epoch: int,
    warmup_epochs: float,
    warmup_lr: float,
    cooldown_epochs: float,
    min_lr: float,
    lr_every: LrEvery = "update",
) -> CosineLRScheduler:
    """timm's schedule; call `step_update(updates done)` before each update.

    The rate rises linearly from warmup_lr during the warm-up, then follows a cosine that starts at update 0 (as in
    DeiT), reaches min_lr cooldown_epochs before the end, and stays there. `num_updates` counts all three. If warm-up
    and cool-down would fill the run, both shrink in proportion, so that half of it is left for the cosine. If the peak
    is below warmup_lr or min_lr, as with a small batch, the rate never goes above the peak.

    lr_every: "update" changes the rate before each update, "epoch" once per epoch: see `LaggingCosine`.
    """
    epochs = num_updates / updates_per_epoch
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
    }
    if lr_every == "update":
        return CosineLRScheduler(optimizer, **options)
    if epochs <= 2 and warmup_epochs and distributed.is_main():
        print_note(
            f"optim.lr_every=epoch: the first two epochs have the learning rate {options['warmup_lr_init']:g}, and "
            "this run has no others; optim.lr_every=update lets it rise"
        )
    return LaggingCosine(optimizer, updates_per_epoch, **options)


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
