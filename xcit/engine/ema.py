"""The moving average of the weights (EMA). Its decay warms up with the number of updates."""

from timm.utils import ModelEmaV3
from torch import nn

WARMUP_UPDATES = 3.0
"""After update t the decay is at most (t - 1) / (t - 1 + WARMUP_UPDATES).

Until that reaches the configured decay, the EMA averages about the last third of the run. A larger number would follow
the weights more closely in a short run, but the paper's runs would no longer end at the same EMA: with 3, the updates
of the warm-up have a weight of 4e-8 at their end, which is less than the rounding of fp32.
"""


def make_ema(module: nn.Module, decay: float | None, *, warm_up: bool = True) -> ModelEmaV3 | None:
    """timm's EMA of the module; None if `decay` is None. Call `update(module, updates done)`.

    warm_up: whether the decay warms up, so that the EMA forgets the weights that it begins with.
    """
    if decay is None:
        return None
    first = 0 if warm_up else -1  # timm replaces the EMA at the update after this one
    options = {"warmup_gamma": WARMUP_UPDATES, "warmup_power": 1.0, "update_after_step": first}
    return ModelEmaV3(module, decay=decay, use_warmup=warm_up, **options)
