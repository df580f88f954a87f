"""The two ways in which a command ends early without being at fault itself, and the wording of the commonest one."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class InputError(ValueError):
    """Something the user gave cannot be used: exit status 2.

    The message is one line, or a few where it lists things, that name the value and what would be accepted.
    """


class TrainingError(RuntimeError):
    """The run cannot go on, though its input was accepted (the loss is not finite, say): exit status 1."""


def choose(table: Mapping[str, T], name: str, what: str) -> T:
    """table[name], or an InputError that names the nearest entry and all the others."""
    if name not in table:
        raise InputError(f"{what}={name}: unknown{did_you_mean(name, table)} (one of {', '.join(table)})")
    return table[name]


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """'; did you mean xcit_s12?', or nothing where no choice is near."""
    near = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
