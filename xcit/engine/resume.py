"""Finds what resume= continues, the folder that a run writes to, and opens that folder."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import LAST
from ..errors import InputError, Notice, WriteError, given_as, print_note
from ..preprocessing import Preprocessing
from . import distributed
from .curves import Curves
from .length import Length
from .recorder import NullRecorder, Recorder, kept_lines
from .run_folder import RUNS, RunFolder, new_path, require_possible, require_writable
from .state import TrainingState, read_state, require_classes
from .trackers import make_tracker, new_run_id


@dataclass(frozen=True)
class Origin:
    """What a resumed run continues from."""

    folder: RunFolder
    checkpoint: Path
    saved: Mapping[str, Any]
    """The content of the checkpoint."""
    unused: list[Path]
    """Checkpoints of the same folder that cannot be read, or were written after this one."""
    is_finished: bool
    """Whether the run has its final evaluation."""

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the run, as the checkpoint has it."""
        return self.saved["identity"]["config"]

    @property
    def choices(self) -> dict[str, str | None]:
        """Group → the file of conf/ that was chosen for it. Older checkpoints do not have it."""
        return self.saved["identity"].get("choices", {})

    def is_complete(self, length: Length, headline: str) -> bool:
        """Whether nothing is left to train of a run of this length, whose best checkpoint this metric chooses."""
        saved, scores = self.saved, self.saved.get("best_scores", {})
        best_epoch = next(iter(scores), None) if headline == saved.get("headline") else None  # another one ranks anew
        return length.is_reached(
            step=saved["step"], epoch=saved["epoch"], seen=saved.get("seen", 0), best_epoch=best_epoch
        )

    @property
    def input_values(self) -> dict[str, Any]:
        """What the run expects of its images, besides their size; older checkpoints do not say it.

        It may come from the weights that the run began with, which a resume does not read.
        """
        if "preprocessing" not in self.saved:
            return {}
        saved = Preprocessing.from_dict(self.saved["preprocessing"])
        names = ["bit_depth", "value_range", "mean", "std", "interpolation"]
        names += [] if saved.resize == "shortest" else ["resize"]  # that is the task's own
        return {name: getattr(saved, name) for name in names}

    def set_unused_aside(self) -> None:
        """Move the unused checkpoints away, so that no later resume takes them for those of this run."""
        if self.unused:
            target = self.folder.checkpoints.set_aside(self.unused, self.folder.metrics)
            print_note(f"{', '.join(path.name for path in self.unused)}: set aside in {target}")


def find_origin(resume: str, run_dir: str | None, name: Callable[[], str]) -> Origin | None:
    """Find what resume= asks for, and lock its folder unless its run is finished. All processes call it.

    resume=none starts a new run. resume=auto continues the run in run_dir, or else the latest run below runs/NAME; it
    starts a new run if there is none. resume=PATH continues a run folder or one of its checkpoints. Of a folder, the
    newest checkpoint that can be read is taken.

    Raises:
        InputError: There is nothing to continue at PATH, the folder holds the work of a run but no checkpoint that can
            be read, it cannot be written to, or another process is writing to it. Or a new run could not have its
            folder: that is refused here, because the data set may take minutes to read.
    """
    found = distributed.on_main(lambda: locate(resume, run_dir, name))
    if found is None:
        distributed.on_main(lambda: RunFolder(new_path(run_dir, name())).require_free(training=True))
        return None
    path, checkpoint = found
    folder = RunFolder(path)
    is_finished = distributed.on_main(folder.results.exists)
    if not is_finished:
        distributed.on_main(lambda: lock(folder))
    try:
        checkpoint, unused = distributed.on_main(lambda: choose(folder, checkpoint))
        return Origin(folder, checkpoint, read_state(checkpoint), unused, is_finished)
    except BaseException:
        folder.lock.release()
        raise


def folder_for(origin: Origin | None, resume: str, run_dir: str | None, name: str) -> RunFolder:
    """The folder that the run writes to: a new one, or that of the run to continue if that is not finished.

    Raises:
        InputError: The new folder is not empty or cannot be written to, or run_dir= contradicts resume=.
    """
    same = origin is not None and run_dir is not None and Path(run_dir).resolve() == origin.folder.path.resolve()
    if origin and not origin.is_finished:
        if run_dir and not same:
            raise InputError(f"run_dir={run_dir}: resume={resume} continues in {origin.folder.path}; leave run_dir out")
        return origin.folder
    if same:
        raise InputError(
            f"run_dir={run_dir}: its run is finished; to train it longer, give resume={run_dir} and another run_dir="
        )
    folder = RunFolder(distributed.from_main(new_path(run_dir, name)))
    distributed.on_main(lambda: folder.require_free(training=True))
    return folder


def open_run(
    folder: RunFolder, origin: Origin | None, state: TrainingState, config_yaml: str, name: str, **logger: Any
) -> Recorder:
    """Make the run's folder, or continue in it, and open what is recorded there. All processes call it.

    Args:
        config_yaml: the content of config.yaml.
        name, logger: the tracker and its options, see `make_tracker`.
    """
    elsewhere = origin is not None and origin.folder is not folder
    if elsewhere:
        state.identity["tracker"], state.identity["tracker_home"] = distributed.from_main(new_run_id()), None
    distributed.on_main(folder.create)
    recorder: Recorder = NullRecorder()
    if distributed.is_main():
        try:
            if origin and elsewhere:
                folder.inherit(origin.folder, origin.unused)
            # Before anything is changed: it raises an error for damaged rows.
            kept_lines(folder.metrics, state.step, state.epoch)
            if origin and not elsewhere:
                origin.set_unused_aside()
            folder.describe(config_yaml, state.identity["classes"])
        except OSError as error:
            raise WriteError(error.errno, error.strerror or str(error), error.filename or str(folder.path)) from None
        given = {key: value for key, value in logger.items() if value is not None}
        logger = {**(state.identity.get("tracker_home") or {}), **given}  # a resume stays where its run is
        identity = {"run_id": state.identity["tracker"], "config": state.identity["config"]}
        tracker = make_tracker(name, folder.path, after_step=state.step, **identity, **logger)
        state.identity["tracker_home"] = tracker.home or state.identity.get("tracker_home")
        curves = Curves(folder.path, state.task.in_curves)
        recorder = Recorder(folder.metrics, tracker, curves, after_step=state.step, epochs_done=state.epoch)
    if elsewhere:
        folder.save(state, recorder)  # so that a kill before the first checkpoint loses nothing
    return recorder


def read_start(run: str | None, task: str, model: str, classes: Sequence[str]) -> Mapping[str, Any] | None:
    """The checkpoint of init_from=: the weights, EMA and head of a run from which another one starts.

    Args:
        run: its folder, whose last checkpoint counts, or a checkpoint; None for no such run.
        task, model, classes: their names in the new run.

    Raises:
        InputError: It is no run, or one of another task, model or classes.
    """
    if run is None:
        return None
    path = Path(run, LAST) if Path(run).is_dir() else Path(run)
    if not path.exists():
        raise InputError(f"init_from={run}: no such run folder or checkpoint; pretrained= takes other weights")
    saved = read_state(path)
    for group, now in (("task", task), ("model", model)):
        before = saved["identity"]["config"][group]["name"]
        if before != now:
            raise InputError(f"init_from={run}: was trained with {group}={before}, the new run has {group}={now}")
    require_classes(saved["identity"]["classes"], classes, f"init_from={run}")
    return saved


@contextmanager
def initial_weights(init_from: str | None) -> Iterator[None]:
    """In this context a model gets its first weights. A mistake in them names the setting that chose them.

    With init_from= no notice is shown: it would be about the weights that are read here, but all of them are loaded.
    """
    with warnings.catch_warnings():
        if init_from:
            warnings.simplefilter("ignore", Notice)
        key, otherwise = ("init_from", "") if init_from else ("pretrained", "pretrained=null trains from scratch")
        with given_as(key, otherwise):
            yield


def locate(resume: str, run_dir: str | None, name: Callable[[], str]) -> tuple[Path, Path | None] | None:
    """The folder of the run to continue, and its checkpoint if resume= names one."""
    if resume == "none":
        return None
    if resume == "auto":
        if run_dir:
            require_possible(Path(run_dir))
        folders = [RunFolder(Path(run_dir))] if run_dir else [RunFolder(path) for path in (RUNS / name()).glob("*")]
        with_work = [folder for folder in folders if folder.holds_work]
        return (max(with_work, key=last_change).path, None) if with_work else None
    path = Path(resume)
    require_possible(path, "resume")
    if not path.exists():
        raise InputError(f"resume={resume}: no such file or run folder")
    if path.is_dir():
        if not RunFolder(path).checkpoints.all():
            raise InputError(f"resume={resume}: is not a run folder with a checkpoint (it lacks {LAST})")
        return path, None
    if path.absolute().parent.name != LAST.parent.name:
        raise InputError(f"resume={resume}: must be a run folder or a checkpoint in one; pretrained= takes weights")
    return (path if len(path.parts) > 1 else path.absolute()).parent.parent, path


def last_change(folder: RunFolder) -> float:
    return max(
        path.stat().st_mtime for path in [folder.path, folder.metrics, *folder.checkpoints.all()] if path.exists()
    )


def lock(folder: RunFolder) -> None:
    require_writable(folder.path)
    try:
        folder.lock.acquire()
    except OSError as error:
        raise InputError(f"run_dir={folder.path}: cannot be written ({error.strerror})") from None


def choose(folder: RunFolder, checkpoint: Path | None) -> tuple[Path, list[Path]]:
    """The checkpoint to continue from, and those that must be set aside for that."""
    if checkpoint:
        return checkpoint, folder.checkpoints.after(checkpoint, read_state(checkpoint)["step"])
    newest, faults = folder.checkpoints.newest()
    if not folder.last.exists():
        print_note(f"{folder.last}: is missing; continuing from {newest}")
    for fault in faults.values():
        print_note(f"{fault}; continuing from {newest}")
    return newest, list(faults)
