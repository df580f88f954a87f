"""Partial freezing: parts of a model that a run leaves as they are."""

from collections.abc import Sequence

from torch import nn

from ..errors import InputError, did_you_mean


def freeze(module: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Exclude parts from training, by their names in the module ("patch_embed", "blocks.0", "cls_token").

    Returns the frozen submodules. They belong into evaluation mode in training, too: their BatchNorms then keep the
    statistics that they have.

    Raises:
        InputError: a name is not one of the module's, or nothing would be left to train.
    """
    modules, parameters = dict(module.named_modules()), dict(module.named_parameters())
    for name in names:
        if (name not in modules and name not in parameters) or not name:
            known = [known for known in (*modules, *parameters) if known]
            raise InputError(f"train.freeze={name}: not a part of the model{did_you_mean(name, known)}")
        part = modules.get(name) or parameters[name]
        part.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise InputError(f"train.freeze={list(names)}: leaves nothing to train")
    return [modules[name] for name in names if name in modules]
