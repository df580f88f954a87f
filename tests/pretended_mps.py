"""A pretended MPS device, for machines without one: tensors in the CPU's memory whose device is "mps".

As on a Mac, an operation raises an error if it makes a tensor in float64 there, or if a tensor of the CPU takes part in
it. Only what Python calls is seen: C++ code computes as on a CPU, and autocast does not see the device. So no test that
uses this shows that a run works on a Mac; it shows what would certainly not.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

MPS = torch.device("mps", 0)
"""As tensors name it, also those that were asked for with "mps"."""
TAKE_BOTH = {Tensor.to, Tensor.copy_, Tensor.__setitem__, Tensor.__getitem__, torch._has_compatible_shallow_copy_type}
"""Operations that may take tensors of two devices."""


class TensorOnMPS(Tensor):
    """A tensor that says that it is on MPS."""

    device = property(lambda self: MPS)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    is_mps = property(lambda self: True)  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Sequence = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert mps:0 device type tensor to numpy")

    __array__ = numpy

    def __deepcopy__(self, memo: Any) -> Tensor:
        with torch._C.DisableTorchFunction():
            copied = as_plain(self).detach().clone().as_subclass(TensorOnMPS).requires_grad_(self.requires_grad)
        copied.__dict__.update(self.__dict__)  # nn.Parameter's mark
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return as_plain(self).__reduce_ex__(protocol)


class PretendedMPS(TorchFunctionMode):
    """In this context the device "mps" is there."""

    def __torch_function__(self, func: Callable, types: Any, args: Sequence = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})


def leaves_of(x: Any) -> Iterator[Any]:
    """What is in nested lists and tuples."""
    if isinstance(x, (list, tuple)):
        for part in x:
            yield from leaves_of(part)
    else:
        yield x


def changed(x: Any, change: Callable[[Any], Any]) -> Any:
    """Nested lists, tuples and dictionaries with each leaf changed."""
    if isinstance(x, dict):
        return {key: changed(value, change) for key, value in x.items()}
    if type(x) in (list, tuple):
        return type(x)(changed(part, change) for part in x)
    if isinstance(x, tuple):  # what torch.max and others return
        return type(x)([changed(part, change) for part in x])
    return change(x)


def as_plain(x: Any) -> Any:
    with torch._C.DisableTorchFunction():
        return x.as_subclass(Tensor) if isinstance(x, TensorOnMPS) else x


def on_cpu(x: Any) -> Any:
    """The device that really computes."""
    return torch.device("cpu") if isinstance(x, (str, torch.device)) and str(x).startswith("mps") else x


def call(func: Callable, args: Sequence, kwargs: Mapping[str, Any]) -> Any:
    """The result of a function of torch, on MPS if it is asked for or a tensor there takes part."""
    if func in (torch.device, torch._C._nn._parse_to):
        return func(*args, **kwargs)
    leaves = list(leaves_of((args, list(kwargs.values()))))
    there = [x for x in leaves if isinstance(x, TensorOnMPS)]
    devices = [kwargs.get("device")] + (list(args[1:]) if func is Tensor.to else [])
    asked = [torch.device(x) for x in devices if isinstance(x, (str, torch.device))]
    asked += [x.device for x in args[1:2] if func is Tensor.to and isinstance(x, Tensor)]
    is_there = asked[0].type == "mps" if asked else bool(there) and func is not Tensor.cpu
    if there and func not in TAKE_BOTH:
        here = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, TensorOnMPS) and x.ndim]
        if here:
            raise RuntimeError(f"{func}: expected all tensors to be on mps, but found one on {here[0].device}")
    own = {id(x): x for x in there}
    with torch._C.DisableTorchFunction():
        result = func(*changed(args, on_cpu), **changed(kwargs, on_cpu))
        return changed(result, lambda x: placed(x, is_there, own, func) if isinstance(x, Tensor) else x)


def placed(x: Tensor, is_there: bool, own: Mapping[int, Tensor], func: Callable) -> Tensor:
    """The tensor on MPS or on the CPU."""
    if not is_there:
        return x.as_subclass(Tensor)
    if x.dtype == torch.float64:
        raise TypeError(f"{func}: cannot convert a MPS Tensor to float64, as MPS does not support it")
    return own.get(id(x)) if id(x) in own else x.as_subclass(TensorOnMPS)


class GeneratorOnMPS(torch.Generator):
    """A generator of the CPU, whatever device is asked for."""

    def __new__(cls, device: Any = "cpu") -> torch.Generator:
        return super().__new__(cls, on_cpu(device))
