"""Tensors that are derived from a module's parameters, and computed again when a parameter changes."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels import HOOKS, may_fold


class KeepsDerived(nn.Module):
    """A module that keeps values derived from its parameters. They are no part of its state dict, pickles or copies."""

    kept: "Snapshot | None" = None

    def derive(self, key: Any) -> Any:
        """Compute the value for `key` from the parameters. Runs without gradients."""
        raise NotImplementedError

    def can_derive(self) -> bool:
        """Whether the module's parts are those that `derive` knows. Hooks are checked elsewhere."""
        return True

    def derived(self, x: Tensor, key: Hashable) -> Any:
        """The value of `derive(key)`, kept until the module changes.

        None if the module has to run as it is: in training, with hooks on its parts, with other parts, and where
        `may_fold(x)` is false.
        """
        if self.training or not may_fold(x):
            return None
        kept = self.kept
        if kept is None or not kept.describes(self):
            self.kept = kept = Snapshot(self, self.can_derive())
        if kept.has_hooks or not kept.can_derive:
            return None
        if key not in kept.values:
            with torch.no_grad():
                kept.values[key] = self.derive(key)
        return kept.values[key]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "kept"}


class Snapshot:
    """What a module's derived values depend on, and the values.

    It is compared with the module in each call of each layer, so that is a plain loop.
    """

    def __init__(self, module: nn.Module, can_derive: bool) -> None:
        parts = list(module.modules())
        self.can_derive = can_derive
        self.values: dict[Hashable, Any] = {}
        self.own_parameters = module._parameters  # a replica of DataParallel has another dictionary
        self.parts = [(part._modules, name, child) for part in parts for name, child in part._modules.items()]
        # The alias keeps the memory of a parameter alive, so that no other tensor gets the same address meanwhile.
        self.tensors = [
            (tensors, name, tensor, tensor.detach(), tensor.data_ptr(), version_of(tensor))
            for part in parts
            for tensors in (part._parameters, part._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]
        self.hooks = [getattr(part, name) for part in parts if part is not module for name in HOOKS]
        self.forwards = [part.__dict__ for part in parts if part is not module]
        self.has_hooks = self.find_hooks()

    def describes(self, module: nn.Module) -> bool:
        """Whether the module's parts, parameters, buffers and hooks are as they were."""
        if module._parameters is not self.own_parameters or self.find_hooks() != self.has_hooks:
            return False
        for parts, name, part in self.parts:
            if parts.get(name) is not part:
                return False
        for tensors, name, tensor, _, address, version in self.tensors:
            if tensors.get(name) is not tensor or tensor.data_ptr() != address:
                return False
            if version is not None and tensor._version != version:
                return False
        return True

    def find_hooks(self) -> bool:
        """Whether a part has hooks, or a `forward` of its own that replaces its class's."""
        return any(self.hooks) or any("forward" in own for own in self.forwards)


def version_of(tensor: Tensor) -> int | None:
    """PyTorch's counter of writes to the tensor; None for inference tensors, which have none."""
    return None if tensor.is_inference() else tensor._version
