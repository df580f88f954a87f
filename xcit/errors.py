"""How a command ends early without being at fault itself, the wording of the commonest case, and notices."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class InputError(ValueError):
    """Something the user gave cannot be used: exit status 2.

    The message is one line, or a few where it lists things, that name the value and what would be accepted.
    """


class TrainingError(RuntimeError):
    """The run cannot go on, though its input was accepted (the loss is not finite, say)."""

    exit_status = 1


class Notice(UserWarning):
    """Something that the user should know and need not mend. Commands print it as one line."""


@contextmanager
def given_as(key: str) -> Iterator[None]:
    """Put the key of the configuration before an InputError whose message begins with the value."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{key}={error}") from None


def choose(table: Mapping[str, T], name: str, what: str) -> T:
    """table[name], or an InputError that names the nearest entry, and the others where they are few."""
    if name not in table:
        raise InputError(unknown(name, what, table))
    return table[name]


def unknown(name: str, what: str, choices: Iterable[str]) -> str:
    choices = list(choices)
    shown = choices if len(choices) <= 20 else [*choices[:5], "…"]
    listed = f" (one of {', '.join(shown)})"
    return f"{what}={name}: unknown{did_you_mean(name, choices)}{listed}"


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """'; did you mean xcit_s12?', or nothing where no choice is near. A section is no suggestion for a key in it."""
    near = difflib.get_close_matches(name, [c for c in choices if not name.startswith(f"{c}.")], n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
