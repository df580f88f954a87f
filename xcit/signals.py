"""Signals that stop a command at once. This file imports next to nothing, so that it works from the first moment on."""

import os
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
        ignore_signals()
        raise Stopped(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is stop:  # otherwise the process ends, and ignores signals until then
                signal.signal(number, handler)


def ignore_signals() -> None:
    """Let no further signal change how the process ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def exit_at_signals() -> None:
    """From now on the first SIGINT, SIGTERM or SIGUSR1 ends the process with one line and status 1.

    This is for the time in which a command imports its modules: there is nothing to clean up, and an exception could be
    caught by the module that is being imported.
    """

    def end(number: int, frame: FrameType | None) -> None:
        if int(os.environ.get("RANK", 0)) == 0:
            os.write(2, f"error: stopped by {signal.Signals(number).name}\n".encode())
        os._exit(1)

    for number in SIGNALS:
        signal.signal(number, end)


@contextmanager
def if_stopped(what: str) -> Iterator[None]:
    """Add to the message of a `Stopped` what the user should know."""
    try:
        yield
    except Stopped as stopped:
        raise Stopped(f"{stopped} {what}") from None
