"""The learning rate: warm-up, cosine, cool-down. A function of the number of updates done, and of nothing else."""

from timm.scheduler import CosineLRScheduler
from torch.optim import Optimizer


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
    down at min_lr cooldown_epochs before the end and stays there. `epochs` counts all three. A run too short for
    its warm-up and cool-down keeps half of its length for the cosine and shrinks both in proportion.
    """
    shrink = min(1.0, 0.5 * epochs / max(warmup_epochs + cooldown_epochs, 1e-9))
    return CosineLRScheduler(
        optimizer,
        t_initial=max(1, round((epochs - shrink * cooldown_epochs) * updates_per_epoch)),
        lr_min=min_lr,
        warmup_t=round(shrink * warmup_epochs * updates_per_epoch),
        warmup_lr_init=warmup_lr,
        t_in_epochs=False,
    )
