"""The optimizer, from timm, with weight decay only where it belongs."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.optim import Optimizer

from ..errors import InputError, choose

ClipBy = Literal["all", "each"]
"""Which gradients have a norm of at most clip_norm: those of all parameters together, or those of each parameter."""


def make_optimizer(
    module: nn.Module,
    *,
    name: str,
    lr: float,
    weight_decay: float,
    options: Mapping[str, Any],
    layer_decay: float | None = None,
    decay_temperature: bool = False,
) -> Optimizer:
    """An optimizer over the module's trainable parameters.

    Args:
        name: any timm optimizer, except those that need a closure or an extra package. "muon" and its relatives update
            the matrices of the hidden layers; the other parameters and the classifier get AdamW.
        lr: the peak learning rate, after scaling.
        options: the optimizer's own arguments (betas, eps, momentum …).
        layer_decay: the learning rate of a layer is this share of that of the layer above it. The module, or a task's
            model, must have a `group_matcher` as timm's models do.
        decay_temperature: whether the temperatures of cross-covariance attention decay, too; their module exempts them.
    """
    choose({known: known for known in list_optimizers()}, name, "optim.name")
    groups = parameter_groups(module, weight_decay, layer_decay, decay_temperature)
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    if name == "adamw" and can_be_fused(module) and not {"foreach", "differentiable"} & arguments.keys():
        arguments = {"fused": True} | arguments
    try:
        return create_optimizer_v2(groups, opt=name, lr=lr, weight_decay=weight_decay, **arguments)
    except (TypeError, ValueError, AssertionError, IndexError, ImportError, RuntimeError) as error:
        raise InputError(f"optim.options={dict(options)}: not accepted by {name} ({error})") from None


def can_be_fused(module: nn.Module) -> bool:
    """Whether torch has fused AdamW for the parameters' devices; on two CPU cores it takes a fifth of the time."""
    return all(parameter.device.type in ("cpu", "cuda") for parameter in module.parameters())


def parameter_groups(
    module: nn.Module, weight_decay: float, layer_decay: float | None, decay_temperature: bool = False
) -> list[dict[str, Any]]:
    """The trainable parameters, by whether they decay, whether Muon is for them, and by layer."""
    if layer_decay is None:
        exempt = undecayed(module, decay_temperature)
        exceptions = {"no_weight_decay_list": exempt, "fallback_list": not_for_muon(module)}
        return param_groups_weight_decay(module, weight_decay, **exceptions)
    layered = module if hasattr(module, "group_matcher") else getattr(module, "model", module)
    if not hasattr(layered, "group_matcher"):
        raise InputError(f"optim.layer_decay={layer_decay}: the model has no group_matcher, which names its layers")
    exempt = undecayed(layered, decay_temperature)
    exceptions = {"no_weight_decay_list": exempt, "fallback_list": not_for_muon(layered)}
    groups = param_groups_layer_decay(layered, weight_decay, layer_decay=layer_decay, **exceptions)
    covered = {id(parameter) for group in groups for parameter in group["params"]}
    for group in parameter_groups(module, weight_decay, None, decay_temperature):
        rest = [parameter for parameter in group["params"] if id(parameter) not in covered]
        groups += [group | {"params": rest}] if rest else []
    return groups


def undecayed(module: nn.Module, decay_temperature: bool = False) -> set[str]:
    """Parameters that a part of the module exempts from weight decay, besides all one-dimensional ones and biases."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        if callable(getattr(part, "no_weight_decay", None))
        for name in part.no_weight_decay()
        if not (decay_temperature and name == "temperature")
    }


def not_for_muon(module: nn.Module) -> set[str]:
    """Parameters that are not a matrix of a hidden layer: vectors, convolutions, tokens, the classifier."""
    classifiers: list[nn.Module] = []
    for part in module.modules():
        if callable(getattr(part, "get_classifier", None)):
            found = part.get_classifier()  # type: ignore[operator]
            classifiers += found if isinstance(found, tuple) else [found]
    outputs = {id(parameter) for classifier in classifiers for parameter in classifier.parameters()}
    return {name for name, p in module.named_parameters() if p.ndim != 2 or id(p) in outputs}


def clip_gradients(parameters: Iterable[nn.Parameter], norm: float, by: ClipBy) -> None:
    """Scale gradients whose L2 norm is above `norm`: the norm of all parameters together, or of each one (DINO)."""
    if by == "all":
        nn.utils.clip_grad_norm_(parameters, norm)
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch._foreach_norm(gradients)
    torch._foreach_mul_(gradients, [(norm / (n + 1e-6)).clamp(max=1) for n in norms])


def peak_lr(lr: float, global_batch_size: int) -> float:
    """The recipe's rule: the configured learning rate is for a global batch of 512."""
    return lr * global_batch_size / 512
