"""What a person sees while it trains: a bar on a terminal, a line for each epoch anywhere."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """A bar over the updates of the whole run, with images/s, loss, learning rate and the time that is left."""

    def __init__(self, epochs: int, updates_per_epoch: int, epochs_done: int, *, shown: bool) -> None:
        self.epochs, self.shown, self.started = epochs, shown, time.perf_counter()
        self.console = Console(stderr=True)
        self.bar = Bar(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not shown or not self.console.is_terminal,
        )
        self.updates = self.bar.add_task(
            "",
            total=epochs * updates_per_epoch,
            completed=epochs_done * updates_per_epoch,
            epoch=f"{epochs_done + 1}/{epochs}",
            status="",
        )
        self.status = ""

    def advance(self) -> None:
        self.bar.advance(self.updates)

    def show(self, loss: float, lr: float, images_per_second: float) -> None:
        self.status = f"loss {loss:.3f}  lr {lr:.2e}  {images_per_second:,.0f} images/s"
        self.bar.update(self.updates, status=self.status)

    def epoch_done(self, epoch: int, results: dict[str, dict[str, float]], headline: str) -> None:
        if self.shown:
            scores = "  ".join(
                f"{headline} {weights} {measured[headline]:.2f}" for weights, measured in results.items()
            )
            elapsed = time.perf_counter() - self.started
            line = f"epoch {epoch}/{self.epochs}  {self.status}  {scores}  {elapsed:,.0f} s"
            self.bar.console.print(line, highlight=False, soft_wrap=True)
            sys.stderr.flush()
        self.bar.update(self.updates, epoch=f"{min(epoch + 1, self.epochs)}/{self.epochs}")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.bar.stop()
