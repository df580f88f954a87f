"""What stops training after the current update or validation, with a checkpoint: a signal, or train.max_time."""

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Self

from ..signals import SIGNALS, Stopped
from . import distributed


class StopSignals:
    """In this context SIGINT, SIGTERM and SIGUSR1 only set a flag; SIGQUIT (Ctrl-\\) and SIGKILL end the process.

    Further signals have no effect, because torchrun delivers one Ctrl-C twice.
    """

    def __init__(self) -> None:
        self.received = 0
        self.stopping = False

    def agreed(self) -> str | None:
        """The name of a signal that any process has received. All processes call it, and get the same answer."""
        number = distributed.greatest(self.received)
        self.stopping = number > 0
        return signal.Signals(number).name if number else None

    def note(self, number: int, frame: FrameType | None) -> None:
        if not self.received and distributed.is_main():
            # Not print(): the signal may interrupt that very function.
            os.write(2, f"{signal.Signals(number).name}: stopping after this update or validation\n".encode())
        self.received = number

    def __enter__(self) -> Self:
        self.before = {number: signal.signal(number, self.note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self.stopping:
            distributed.wait_for_all()  # torchrun kills the others as soon as one has ended
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.received and not self.stopping and not kind:  # it came after the last checkpoint
            raise Stopped(f"{signal.Signals(self.received).name} after the last update")


class TimeLimit:
    """Hours from now on; None: no limit."""

    def __init__(self, hours: float | None) -> None:
        self.end = None if hours is None else time.monotonic() + 3600 * hours

    def is_over(self) -> bool:
        """Whether the time of any process is over. All processes call it, and get the same answer."""
        return self.end is not None and distributed.greatest(int(time.monotonic() >= self.end)) > 0
