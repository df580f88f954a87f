"""The optimiser, from timm, with weight decay only where it belongs."""

from collections.abc import Mapping
from typing import Any

from timm.optim import create_optimizer_v2, list_optimizers, param_groups_weight_decay
from torch import nn
from torch.optim import Optimizer

from ..errors import InputError, choose


def make_optimizer(
    module: nn.Module, *, name: str, lr: float, weight_decay: float, options: Mapping[str, Any]
) -> Optimizer:
    """An optimiser over the module's trainable parameters.

    Args:
        name: one of timm's, "adamw" or "lamb" say.
        lr: the peak learning rate, after scaling.
        options: the optimiser's own arguments (betas, eps, momentum …).
    """
    choose({known: known for known in list_optimizers()}, name, "optim.name")
    groups = param_groups_weight_decay(module, weight_decay, no_weight_decay_list=undecayed(module))
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    try:
        return create_optimizer_v2(groups, opt=name, lr=lr, weight_decay=weight_decay, **arguments)
    except (TypeError, ValueError, AssertionError, IndexError, ImportError, RuntimeError) as error:
        raise InputError(f"optim.options={dict(options)}: not accepted by {name} ({error})") from None


def undecayed(module: nn.Module) -> set[str]:
    """Parameters that a part of the module wants free of weight decay, besides all one-dimensional ones and biases."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        if callable(getattr(part, "no_weight_decay", None))
        for name in part.no_weight_decay()
    }


def peak_lr(lr: float, global_batch_size: int) -> float:
    """The recipe's rule: the configured rate is the one for a global batch of 512."""
    return lr * global_batch_size / 512
