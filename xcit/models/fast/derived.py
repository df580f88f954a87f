"""Tensors that are derived from a module's parameters, and recomputed when a parameter changes."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels import HOOKS, may_fold


class CachesDerived(nn.Module):
    """A module that caches values derived from its parameters. State dicts, pickles and copies do not contain them."""

    cache: "Snapshot | None" = None
    __jit_ignored_attributes__ = ("cache",)  # torch.jit.script does not compile it

    def derive(self, key: Any) -> Any:
        """Compute the value for `key` from the parameters. Runs without gradients."""
        raise NotImplementedError

    def can_derive(self) -> bool:
        """Whether `derive` can handle the module's parts. `derived` checks their hooks."""
        return True

    def derived(self, x: Tensor, key_of: Callable[[Tensor], Hashable]) -> Any:
        """The value of `derive(key_of(x))`, cached until the module changes.

        None if derived tensors must not be used: in training, with hooks on the module's parts, with other parts, and
        if `may_fold(x)` is false.
        """
        if self.training or not may_fold(x):
            return None
        cache = self.cache
        if cache is None or not cache.describes(self):
            self.cache = cache = Snapshot(self, self.can_derive())
        if cache.has_hooks or not cache.can_derive:
            return None
        key = key_of(x)
        if key not in cache.values:
            with torch.no_grad():
                cache.values[key] = self.derive(key)
        return cache.values[key]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "cache"}


class Snapshot:
    """What a module's derived values depend on, and the values.

    It is compared with the module in each call of each layer, so `describes` is a plain loop, for speed.
    """

    def __init__(self, module: nn.Module, can_derive: bool) -> None:
        parts = list(module.modules())
        self.can_derive = can_derive
        self.values: dict[Hashable, Any] = {}
        self.own_parameters = module._parameters  # another dictionary in a replica of DataParallel
        self.parts = [(part._modules, name, child) for part in parts for name, child in part._modules.items()]
        # tensor.detach() keeps the memory of a parameter alive, so that no other tensor gets the same address.
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
        """Whether the module's parts, parameters, buffers and hooks are unchanged."""
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
        """Whether a part has hooks, or a `forward` that replaces that of its class."""
        return any(self.hooks) or any("forward" in own for own in self.forwards)


def version_of(tensor: Tensor) -> int | None:
    """PyTorch's counter of writes to the tensor; None for inference tensors, which have none."""
    return None if tensor.is_inference() else tensor._version
