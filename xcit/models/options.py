"""Checks the arguments of an XCiT, so that a wrong one is answered with what would be accepted."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, Self

import torch

from ..errors import InputError, did_you_mean
from .layer import ATTENTIONS
from .patch_embed import PATCH_EMBEDS
from .position import POSITIONS

PATCH_SIZES = (2, 4, 8, 16, 32)
POOLS = ("class_attention", "average")
GLOBAL_POOLS = ("token", "avg", "")

Check = Callable[[Any], str | None]
"""Takes a value. Returns what would be accepted, or None if the value is."""


class ChecksNames:
    """A class that answers an unknown keyword argument with an InputError. Derive from it before nn.Module."""

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        check_names(cls, options, cls.__name__)
        try:
            inspect.signature(cls).bind_partial(*arguments)
        except TypeError:
            accepted = ", ".join(inspect.signature(cls).parameters)
            raise InputError(f"{cls.__name__}{arguments}: takes arguments by name ({accepted})") from None
        return super().__new__(cls, *arguments, **options)


def check_names(build: Callable[..., Any], options: Mapping[str, Any], what: str) -> None:
    """Raise an InputError if `build` has no argument of this name.

    what: the name of what is built, for the message.
    """
    parameters = inspect.signature(build).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    accepted = [name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_POSITIONAL]
    for name, value in options.items():
        if name not in accepted:
            near = did_you_mean(name, accepted)
            raise InputError(f"{name}={value!r}: {what} has no such argument{near} (it has {', '.join(accepted)})")


def check_how(
    name: Any, pretrained: Any, checkpoint_path: Any, device: torch.device | str | None, dtype: torch.dtype | None
) -> None:
    """Raise an InputError if an argument of `create_model` that is no option of the model is not accepted."""
    if not isinstance(name, str):
        raise InputError(f"model={name!r}: must be a name")
    if not isinstance(pretrained, (str, Path, bool, NoneType)):
        raise InputError(f"pretrained={pretrained!r}: must be True, False or the name of weights or of a file")
    if checkpoint_path and pretrained:
        raise InputError(f"checkpoint_path={checkpoint_path}, pretrained={pretrained}: give one of them")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(f"dtype={dtype!r}: must be a floating-point type such as torch.bfloat16")
    try:
        torch.device(device if device is not None else "cpu")
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device={device!r}: {str(error).splitlines()[0]}") from None


def check_values(options: Mapping[str, Any]) -> None:
    """Raise an InputError if an argument of an XCiT has a value that is not accepted. Other keys are ignored."""
    for key, check in CHECKS.items():
        if key in options and (accepted := check(options[key])):
            raise InputError(f"{key}={options[key]!r}: must be {accepted}")
    dim, heads, patch_size = options["dim"], options["heads"], options["patch_size"]
    if dim % heads:
        raise InputError(f"heads={heads}: must divide dim={dim}")
    if options["patch_embed"] == "conv" and dim < patch_size // 2:
        raise InputError(f"dim={dim}: must be at least patch_size / 2 = {patch_size // 2} for patch_embed='conv'")
    if options["pool"] == "average" and options["global_pool"] == "token":
        raise InputError("global_pool='token': needs the class token, which a model with pool='average' does not have")


def whole_number(minimum: int) -> Check:
    def check(value: Any) -> str | None:
        right = isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= minimum
        return None if right else f"a whole number of at least {minimum}"

    return check


def size_in_pixels(value: Any) -> str | None:
    sides = value if isinstance(value, (tuple, list)) and len(value) == 2 else [value]
    return "a whole number of at least 1, or two: (height, width)" if any(map(whole_number(1), sides)) else None


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """(H, W) of an image size, which is one number for squares."""
    H, W = (image_size, image_size) if isinstance(image_size, int) else image_size
    return H, W


def rate(value: Any) -> str | None:
    right = isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < 1
    return None if right else "at least 0 and less than 1"


def finite_number(value: Any) -> str | None:
    right = isinstance(value, Real) and not isinstance(value, bool) and abs(float(value)) < float("inf")
    return None if right else "a finite number"


def flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "True or False"


def one_of(*choices: Any) -> Check:
    def check(value: Any) -> str | None:
        right = any(type(value) is type(choice) and value == choice for choice in choices)
        return (
            None
            if right
            else f"one of {', '.join(repr(choice) if choice == '' else str(choice) for choice in choices)}"
        )

    return check


CHECKS: dict[str, Check] = {
    "dim": whole_number(1),
    "depth": whole_number(1),
    "heads": whole_number(1),
    "layer_scale_init": finite_number,
    "tokens_norm": flag,
    "patch_size": one_of(*PATCH_SIZES),
    "num_classes": whole_number(0),
    "drop_path_rate": rate,
    "drop_rate": rate,
    "pos_drop_rate": rate,
    "proj_drop_rate": rate,
    "attn_drop_rate": rate,
    "in_chans": whole_number(1),
    "image_size": size_in_pixels,
    "class_depth": whole_number(1),
    "patch_embed": one_of(*PATCH_EMBEDS),
    "attention": one_of(*ATTENTIONS),
    "lpi": flag,
    "l2_norm": flag,
    "temperature": flag,
    "position": one_of(*POSITIONS),
    "pool": one_of(*POOLS),
    "global_pool": lambda value: None if value is None else one_of(*GLOBAL_POOLS)(value),
}
