"""The learning rate: warm-up, cosine, cool-down. A function of the number of updates done, and of nothing else."""

from timm.scheduler import CosineLRScheduler
from torch.optim import Optimizer

from ..errors import InputError


def make_schedule(
    optimizer: Optimizer,
    *,
    epochs: int,
    updates_per_epoch: int,
    warmup_epochs: float,
    warmup_lr: float,
    cooldown_epochs: float,
    min_lr: float,
) -> CosineLRScheduler:
    """timm's schedule, to be stepped by `step_update(updates done)` before each update.

    The rate rises linearly from warmup_lr during the warm-up, follows a cosine that began at update 0 (as in DeiT), is
    down at min_lr cooldown_epochs before the end and stays there. `epochs` counts all three. A run that its warm-up and
    cool-down would fill keeps half of its length for the cosine and shrinks both in proportion.

    Raises:
        InputError: min_lr is above the optimiser's rate, the peak.
    """
    peak = max(group["lr"] for group in optimizer.param_groups)
    if min_lr > peak:
        raise InputError(
            f"optim.min_lr={min_lr:g}: is above the peak, optim.lr × train.global_batch_size / 512 = {peak:g}"
        )
    shrink = 1.0
    if warmup_epochs + cooldown_epochs >= epochs:
        shrink = 0.5 * epochs / (warmup_epochs + cooldown_epochs)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(1, round((epochs - shrink * cooldown_epochs) * updates_per_epoch)),
        lr_min=min_lr,
        warmup_t=round(shrink * warmup_epochs * updates_per_epoch),
        warmup_lr_init=warmup_lr,
        t_in_epochs=False,
    )
