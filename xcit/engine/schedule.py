"""The learning rate: warm-up, cosine, cool-down. It is a function of the number of updates done."""

from timm.scheduler import CosineLRScheduler
from torch.optim import Optimizer


def make_schedule(
    optimizer: Optimizer,
    *,
    num_updates: int,
    updates_per_epoch: int,
    warmup_epochs: float,
    warmup_lr: float,
    cooldown_epochs: float,
    min_lr: float,
) -> CosineLRScheduler:
    """timm's schedule; call `step_update(updates done)` before each update.

    The rate rises linearly from warmup_lr during the warm-up, then follows a cosine that starts at update 0 (as in
    DeiT), reaches min_lr cooldown_epochs before the end, and stays there. `num_updates` counts all three. If warm-up
    and cool-down would fill the run, both shrink in proportion, so that half of it is left for the cosine. If the peak
    is below warmup_lr or min_lr, as with a small batch, the rate never goes above the peak.
    """
    epochs = num_updates / updates_per_epoch
    peak = max(group["lr"] for group in optimizer.param_groups)
    shrink = 1.0
    if warmup_epochs + cooldown_epochs >= epochs:
        shrink = 0.5 * epochs / (warmup_epochs + cooldown_epochs)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(1, round((epochs - shrink * cooldown_epochs) * updates_per_epoch)),
        lr_min=min(min_lr, peak),
        warmup_t=round(shrink * warmup_epochs * updates_per_epoch),
        warmup_lr_init=min(warmup_lr, peak),
        t_in_epochs=False,
    )
