"""Partial freezing: parts of a model that a run does not train."""

from collections.abc import Sequence

from torch import nn

from ..errors import InputError, did_you_mean


def freeze(module: nn.Module, names: Sequence[str]) -> None:
    """Exclude parts from training, by their names in the module ("patch_embed", "blocks.0", "cls_token").

    Raises:
        InputError: a name is not one of the module's, or nothing would be left to train.
    """
    parts = dict(module.named_modules()) | dict(module.named_parameters())
    del parts[""]
    for name in names:
        if name not in parts:
            children = ", ".join(child for child, _ in module.named_children())
            near = did_you_mean(name, parts) or f"; its parts are {children}, and what they contain, as blocks.0"
            raise InputError(f"train.freeze={name}: not a part of the model{near}")
        parts[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise InputError(f"train.freeze={list(names)}: leaves nothing to train")


def frozen_parts(module: nn.Module, names: Sequence[str], batchnorms: bool = False) -> list[nn.Module]:
    """The frozen submodules. They stay in evaluation mode, so that their BatchNorms keep their statistics.

    batchnorms: whether all BatchNorms of the module keep their statistics; their scales and shifts are trained.
    """
    modules = dict(module.named_modules())
    norms = [part for part in modules.values() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    return [modules[name] for name in names if name in modules] + (norms if batchnorms else [])
