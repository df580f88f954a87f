"""Progress of a command: a bar on a terminal, and a line every so often in a log file, so that nothing is silent."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from rich.console import Console, RenderableType
from rich.progress import Progress as Bar
from rich.progress import ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

from ..checkpoint import shown
from . import distributed

UNCOUNTED, COUNTED, LATER = 5.0, 10.0, 10.0
"""Seconds without a line after which the first line of a step comes, and the later ones."""
SHORT = 1.0
"""Seconds that a step without a total takes at least if a line tells of it."""
ERASE = "\r\033[K"
"""Clears the line of a terminal, where the progress bar of a download may stand."""
T_co = TypeVar("T_co", covariant=True)


class Batches(Sized, Protocol[T_co]):
    """What `Progress.track` counts: something with a length to iterate over."""

    def __iter__(self) -> Iterator[T_co]: ...


class Step:
    """What a command does now, and how far it is. The code that does it only counts; a thread reads the count.

    Args:
        what: as "epoch 3/400".
        total: the number of units to do; None if it is unknown.
        done: units that were done before, as at a resume.
        now: the time in seconds.
    """

    def __init__(self, what: str, total: int | None, unit: str, done: int, now: float) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = self.first = done
        self.started = now
        self.status = ""
        self.lines = 0
        """How many were written."""

    def advance(self, units: int = 1) -> None:
        self.done += units

    def describe(self, now: float) -> str:
        """As "640 of 1,437 images, 85 images/s, 9 s left; loss 1.2"."""
        seconds, new = now - self.started, self.done - self.first
        if self.total is None:
            parts = [duration(seconds)]
        else:
            parts = [f"{self.done:,} of {self.total:,} {self.unit}"]
            if new and seconds > 0:
                rate = new / seconds
                parts += [f"{rate:,.{0 if rate >= 10 else 1}f} {self.unit}/s"]
                parts += [f"{duration((self.total - self.done) / rate)} left"]
            else:
                parts += [duration(seconds)]
        return "; ".join(filter(None, [", ".join(parts), self.status]))


class Progress:
    """Shows what a command does. There is one current step; a new one takes its place.

    A step with a total is a bar on a terminal. All else is a line on stderr, which a thread writes: the first one of a
    step after UNCOUNTED or COUNTED seconds of silence, the others after LATER seconds. Counting costs nothing, and no
    GPU is waited for. Only the main process shows anything.
    """

    def __init__(
        self,
        *,
        shown: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        write: Callable[[str], None] | None = None,
    ) -> None:
        """
        Args:
            shown: whether this process shows its progress; None for the main process alone.
            clock: returns the time in seconds.
            write: writes a line of the thread; None for stderr.
        """
        self.shown = distributed.is_main() if shown is None else shown
        self.clock, self.write = clock, write or self.write_to_stderr
        self.console = Console(stderr=True)
        self.bar: Bar | None = None
        self.current: Step | None = None
        self.last_line = self.clock()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.write_lines, daemon=True)

    def begin(self, what: str, total: int | None = None, unit: str = "images", *, done: int = 0) -> Step:
        """Begin the next step, as `Step` describes it."""
        self.current = Step(what, total, unit, done, self.clock())
        self.show_bar(self.shown and total is not None and self.console.is_terminal)
        return self.current

    def end(self) -> None:
        """End the current step. No step follows at once."""
        self.current = None
        self.show_bar(False)

    def track(self, batches: Batches[T_co], what: str, unit: str = "batches") -> Iterator[T_co]:
        """Yield the batches. They are a step."""
        step = self.begin(what, len(batches), unit)
        for batch in batches:
            yield batch
            step.advance()
        self.end()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.last_line = self.clock()
        if self.shown:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def line(self, now: float) -> str | None:
        """The line that is due now, if there is one."""
        step = self.current
        if step is None or self.bar:
            return None
        patience = LATER if step.lines else UNCOUNTED if step.total is None else COUNTED
        too_short = step.total is None and now - step.started < SHORT
        if too_short or now - self.last_line < patience:
            return None
        step.lines += 1
        self.last_line = now
        return f"{step.what}: {step.describe(now)}"

    def write_lines(self) -> None:
        while not self.ended.wait(0.5):
            line = self.line(self.clock())
            if line:
                self.write(line)

    def write_to_stderr(self, line: str) -> None:
        # Not print(): a data worker may be forked while this thread holds a lock of sys.stderr.
        with suppress(OSError):
            os.write(2, f"{ERASE if self.console.is_terminal else ''}{line}\n".encode(errors="replace"))

    def show_bar(self, wanted: bool) -> None:
        if wanted and self.bar is None:
            columns = (What(self), Share(self), Rest(self, table_column=Column(no_wrap=True)))
            self.bar = Bar(*columns, console=self.console, transient=True, refresh_per_second=4)
            self.bar.add_task("")
            self.bar.start()
        elif not wanted and self.bar is not None:
            self.bar.stop()
            self.bar = None
            self.last_line = self.clock()

    def __enter__(self) -> Self:
        if self.shown:
            self.thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.ended.set()
        self.end()


class StepColumn(ProgressColumn):
    """A column of the bar. It shows the current step."""

    def __init__(self, progress: Progress, **options: Any) -> None:
        super().__init__(**options)
        self.progress = progress

    def render(self, task: Task) -> RenderableType:
        step = self.progress.current
        return self.of(step) if step else ""

    def of(self, step: Step) -> RenderableType:
        raise NotImplementedError


class What(StepColumn):
    def of(self, step: Step) -> RenderableType:
        return Text(step.what)


class Share(StepColumn):
    def of(self, step: Step) -> RenderableType:
        return ProgressBar(total=step.total or 0, completed=step.done, width=20)


class Rest(StepColumn):
    def of(self, step: Step) -> RenderableType:
        return Text(step.describe(self.progress.clock()))


class TrainingProgress:
    """What the training loop reports: its epochs with their images, loss and learning rate, and its validations."""

    def __init__(self, progress: Progress, *, epochs: int, updates: int, updates_done: int) -> None:
        """epochs, updates: of the whole run."""
        self.progress, self.epochs, self.updates = progress, epochs, updates
        self.first = self.done = updates_done
        self.started = progress.clock()
        self.measured = "trained before the resume"  # if only the validation of the first epoch is left

    def begin_epoch(self, epoch: int, updates: int, done: int, *, images_per_update: int) -> None:
        """epoch: from 1. updates: of this epoch, of which `done` were made before."""
        self.images_per_update = images_per_update
        what, images = f"epoch {epoch}/{self.epochs}", updates * images_per_update
        self.step = self.progress.begin(what, images, done=done * images_per_update)

    def advance(self) -> None:
        """An update was made."""
        self.done += 1
        self.step.advance(self.images_per_update)

    def show(self, loss: float, lr: float, images_per_second: float, others: Mapping[str, float] | None = None) -> None:
        """The loss was read. others: what the task shows besides."""
        self.measured = f"loss {loss:.3f}{listed(others or {})}  lr {lr:.2e}  {images_per_second:,.0f} images/s"
        left = (self.updates - self.done) * (self.progress.clock() - self.started) / (self.done - self.first)
        self.step.status = f"loss {loss:.3f}, lr {lr:.2e}; {duration(left)} left of the run"

    def epoch_done(
        self, epoch: int, results: dict[str, dict[str, float]], headline: str, others: Mapping[str, float] | None = None
    ) -> None:
        """A validation is done. results: of each kind of weights. others: what the task shows besides."""
        scores = "  ".join(
            f"{headline} {weights} {shown(headline, measured[headline])}" for weights, measured in results.items()
        )
        elapsed = self.progress.clock() - self.started
        self.progress.say(
            f"epoch {epoch}/{self.epochs}  {self.measured}  {scores}{listed(others or {})}  {elapsed:,.0f} s"
        )


def listed(values: Mapping[str, float]) -> str:
    """As "  rankme 12.3  feature_std 0.5"."""
    return "".join(f"  {name} {value:.3g}" for name, value in values.items())


def duration(seconds: float) -> str:
    """As "45 s", "8 min", "3 h 20 min" or "2 d 4 h"."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


SILENT = Progress(shown=False)
"""Shows nothing."""
