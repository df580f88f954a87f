"""Progress of a training run: a bar on a terminal, and a line for each epoch everywhere."""

import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from . import distributed


class Progress:
    """A bar over the updates of the whole run, with images/s, loss, learning rate and the remaining time."""

    def __init__(self, epochs: int, updates: int, *, epochs_done: int, updates_done: int, shown: bool) -> None:
        """epochs, updates: of the whole run."""
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
            total=updates,
            completed=updates_done,
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
        self.bar.update(self.updates, epoch=f"{min(epoch + 1, self.epochs)}/{self.epochs}")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.bar.stop()


def announce_resume(
    checkpoint: Path, epochs: int, seen: int, before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Print where the run continues, and the settings that changed since the checkpoint."""
    if distributed.is_main():
        changed = [
            f"{key} {old} → {new}" for key, old, new in differences(before, now) if key not in ("resume", "run_dir")
        ]
        notice = f"; changed since: {', '.join(changed)}" if changed else ""
        within = f" and {seen:,} images of the next" if seen else ""
        print(f"resuming {checkpoint} after epoch {epochs}{within}{notice}", file=sys.stderr)


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) wherever two nested configurations differ."""
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new
