"""Signals that stop a command at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(KeyboardInterrupt):
    """A signal stopped the command. The message is its name, and what else the user should know.

    It is no Exception, so that code which handles errors and goes on does not catch it.
    """


@contextmanager
def stop_at_signals() -> Iterator[None]:
    """In this context the first SIGINT, SIGTERM or SIGUSR1 raises `Stopped`.

    Further signals have no effect, so that they do not interrupt the cleanup. torchrun delivers one Ctrl-C twice.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def if_stopped(what: str) -> Iterator[None]:
    """Add to the message of a `Stopped` what the user should know."""
    try:
        yield
    except Stopped as stopped:
        raise Stopped(f"{stopped} {what}") from None
