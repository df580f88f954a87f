"""Exceptions for user errors, notices, and the "did you mean" message."""

import difflib
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from .credentials import without_credentials

T = TypeVar("T")
NEAR = 0.7
"""Least similarity of a name that is suggested for another, as difflib measures it. train.epoch is near train.epochs;
train.early_stopping is not near train.channels_last."""


class InputError(ValueError):
    """Something the user gave cannot be used: exit status 2.

    The message is one line, or a few where it lists things, that name the value and what would be accepted. Passwords
    and tokens in addresses are masked.
    """

    of_one_process: bool = False
    """Whether only one process raises it. Then this process prints it, otherwise the main one does."""

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(message))


class TrainingError(RuntimeError):
    """The run cannot continue although its input was accepted: the loss is not finite, for example."""

    exit_status = 1

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(message))


class StoppedTrainingError(TrainingError):
    """A signal stopped training. In a multirun no further job begins."""


class WriteError(OSError):
    """A file cannot be written. `filename` and `strerror` say which and why."""

    def __str__(self) -> str:
        return f"{self.filename}: cannot be written ({self.strerror})"


class Notice(UserWarning):
    """Something that the user should know and need not mend. Commands print it as one line."""


def warn(notice: str) -> None:
    """Warn of what the user should know. The warning points at the line that calls the library."""
    library, level, frame = __name__.partition(".")[0], 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == library:
        frame, level = frame.f_back, level + 1
    warnings.warn(notice, Notice, stacklevel=level)


def print_note(line: str) -> None:
    """Print what the user should know and need not mend.

    Unlike a `Notice`, it is printed in worker processes, too, and it cannot be filtered.
    """
    print(f"note: {without_credentials(line)}", file=sys.stderr, flush=True)


@contextmanager
def given_as(key: str, otherwise: str = "") -> Iterator[None]:
    """Put the configuration key before the message of an InputError, which begins with the value.

    otherwise: what the user can do instead; it is put behind the message.
    """
    try:
        yield
    except InputError as error:
        separator = "\n  " if "\n" in str(error) else "; "
        raise InputError(f"{key}={error}{otherwise and separator}{otherwise}") from None


def choose(table: Mapping[str, T], name: str, what: str) -> T:
    """table[name], or an InputError that names the nearest entry, and all entries if they are few."""
    if name not in table:
        raise InputError(unknown(name, what, table))
    return table[name]


def unknown(name: str, what: str, choices: Iterable[str]) -> str:
    choices = list(choices)
    shown = choices if len(choices) <= 20 else [*choices[:5], "…"]
    listed = f" (one of {', '.join(shown)})"
    return f"{what}={name}: unknown{did_you_mean(name, choices)}{listed}"


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """'; did you mean xcit_s12?', or '' if no choice is near. A section is not suggested for a key in it."""
    folded = {choice.casefold(): choice for choice in choices if not name.startswith(f"{choice}.")}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=NEAR)
    return f"; did you mean {folded[near[0]]}?" if near else ""
