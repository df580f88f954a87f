"""The checkpoints of a run folder: which are kept, and which one a run continues from.

last.pt            the newest
last-1.pt …        the ones before it (train.keep_last)
best.pt            of the best validation
best-epoch-12.pt … of the next best ones (train.keep_best)
set_aside/         what a resumed run did not use: damaged checkpoints, and those after its own
"""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ..checkpoint import merit
from ..errors import InputError, WriteError
from ..storage import aside_of, sync_folder, write_tensors
from .state import read_state

SET_ASIDE = "set_aside"
Score = tuple[float, str]
"""The headline metric, and the weights that reached it: "raw" or "ema"."""


class Checkpoints:
    """The folder `checkpoints` of a run.

    Args:
        folder: The folder. It is created with the first checkpoint.
        keep_last: The number of the newest checkpoints that are kept, last.pt among them.
        keep_best: The number of checkpoints of the best validations that are kept, best.pt among them.
    """

    def __init__(self, folder: Path, keep_last: int = 1, keep_best: int = 1) -> None:
        self.folder, self.keep_last, self.keep_best = folder, keep_last, keep_best
        self.last, self.best = folder / "last.pt", folder / "best.pt"

    def best_of(self, epoch: int) -> Path:
        """The checkpoint of an epoch whose validation is among the best ones but not the best."""
        return self.folder / f"best-epoch-{epoch}.pt"

    def rank(self, scores: Mapping[int, Score], epoch: int, score: Score, headline: str) -> dict[int, Score]:
        """Add an epoch to the scores of the kept epochs. Return the best ones; the first is the best of all.

        headline: the metric that is ranked; see LOWER_IS_BETTER.
        """
        every = [*((other, kept) for other, kept in scores.items() if other != epoch), (epoch, score)]
        every.sort(key=lambda item: -merit(headline, item[1][0]))  # of equal scores, the older one is better
        return dict(every[: self.keep_best])

    def existing(self, scores: Mapping[int, Score]) -> dict[int, Score]:
        """Drop the epochs whose checkpoint is gone, and make the best one that is left best.pt."""
        kept: dict[int, Score] = {}
        for epoch, score in scores.items():
            path = self.best_of(epoch)
            if not kept and path.exists() and not self.best.exists():
                path.replace(self.best)
            if path.exists() or (not kept and self.best.exists()):
                kept[epoch] = score
        return kept

    def write_best(self, content: Mapping[str, Any], ranking: Sequence[int], epoch: int) -> None:
        """Write the checkpoint of an epoch that was just validated, if it is among the best.

        Args:
            content: The state of the run.
            ranking: The epochs whose checkpoints are kept, the best one first.

        Raises:
            OSError: A file cannot be written.
        """
        self.folder.mkdir(exist_ok=True)
        if epoch not in ranking:
            return
        if epoch != ranking[0]:
            write_tensors(self.best_of(epoch), content)
            return
        # Keep the checkpoint that was the best so far, if it is still among the best.
        if len(ranking) > 1 and self.best.exists() and not self.best_of(ranking[1]).exists():
            replace_by_copy(self.best_of(ranking[1]), self.best)
        write_tensors(self.best, content)

    def write_last(self, content: Mapping[str, Any], ranking: Sequence[int]) -> None:
        """Write last.pt, keep the one before as last-1.pt, and so on. Then remove what is not to be kept.

        A kill at any moment leaves complete files. The run then repeats the updates since last.pt, with the same
        results.

        Raises:
            OSError: A file cannot be written.
        """
        self.folder.mkdir(exist_ok=True)
        # Write the new checkpoint completely before the others move: if that fails, they stay what they are.
        new = aside_of(self.last)
        try:
            write_tensors(new, content)
        except WriteError as error:
            raise WriteError(error.errno, error.strerror, str(self.last)) from None
        for number in range(self.keep_last - 1, 0, -1):
            newer = self.previous(number - 1)
            if newer.exists():
                replace_by_copy(self.previous(number), newer)
        new.replace(self.last)
        sync_folder(self.folder)
        kept = {self.best_of(epoch) for epoch in ranking[1:]} | {self.previous(n) for n in range(self.keep_last)}
        for path in [*self.folder.glob("last-*.pt"), *self.folder.glob("best-epoch-*.pt")]:
            if path not in kept:
                path.unlink(missing_ok=True)

    def previous(self, number: int) -> Path:
        """The checkpoint that was written `number` checkpoints before the newest."""
        return self.folder / f"last-{number}.pt" if number else self.last

    def all(self) -> list[Path]:
        """All checkpoints, last.pt first."""
        return sorted(self.folder.glob("*.pt"), key=lambda path: (path != self.last, path.name))

    def newest(self) -> tuple[Path, dict[Path, str]]:
        """Find the newest checkpoint that can be read.

        Returns:
            Its path, and why others cannot be read: only these were tried.

        Raises:
            InputError: None can be read.
        """
        faults: dict[Path, str] = {}
        steps: dict[Path, int] = {}
        for path in self.all():
            try:
                steps[path] = read_state(path)["step"]
            except InputError as error:
                faults[path] = str(error)
            if path == self.last and path in steps:
                break
        if not steps:
            reasons = "; ".join(faults.values()) or "it has no checkpoint"
            raise InputError(
                f"run_dir={self.folder.parent}: holds a run that cannot be continued ({reasons}); begin a new one "
                "in another folder"
            )
        return max(steps, key=lambda path: steps[path]), faults

    def after(self, chosen: Path, step: int) -> list[Path]:
        """The checkpoints that were written after `chosen`, which is of this step, or cannot be read."""
        return [path for path in self.all() if path != chosen and step_of(path) > step]

    def set_aside(self, paths: list[Path], metrics: Path) -> Path:
        """Move checkpoints, and copy the metrics, to a new folder in set_aside/. Return it."""
        target = self.folder / SET_ASIDE / datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        target.mkdir(parents=True)
        for path in paths:
            path.replace(target / path.name)
        if metrics.exists():
            shutil.copy2(metrics, target / metrics.name)
        return target


def step_of(path: Path) -> float:
    """The update after which a checkpoint was written; infinity if it cannot be read."""
    try:
        return read_state(path)["step"]
    except InputError:
        return float("inf")


def replace_by_copy(target: Path, source: Path, *, link: bool = True) -> None:
    """Make `target` the same as `source`, by a hard link if that is wanted and the file system has them."""
    aside = aside_of(target)
    try:
        linked = False
        if link:
            with suppress(OSError):
                aside.hardlink_to(source)
                linked = True
        if not linked:
            shutil.copy2(source, aside)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
