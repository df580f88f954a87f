"""Loads examples in worker processes, applies a view, and yields batches on the device.

The loaders work with any data set and any view; they know none of them by name.
"""

import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from xcit.encoded_image import MAX_PIXELS, BrokenImageError
from xcit.errors import InputError, TrainingError

from .broken_images import BrokenImages
from .examples import Examples, View
from .samplers import EvalBatches, TrainBatches
from .shared_memory import PREFETCHED, HeldMappings, SharedMemoryError, require_shared_memory, share
from .viewed_examples import ViewedExamples, ViewedSample
from .workers import begin_worker, default_workers

SEARCH_SECONDS = 5.0
"""How long a run that must stop because of broken training images looks for others."""


class WorkerKilledError(TrainingError):
    """A worker process was killed. The cause is the machine, for example too little memory, and not the data."""

    of_one_process = True
    """Under DDP only the process whose worker was killed raises it."""


class TrainLoader:
    """Yields augmented training batches, one epoch at a time. Order and augmentation follow from (seed, epoch).

    With several views, the run is divided into equal parts of epochs, and each part uses one view. Progressive image
    sizes are an example. The epoch number alone determines the view.
    """

    def __init__(
        self,
        examples: Examples,
        views: Sequence[View],
        batches: TrainBatches,
        *,
        epochs: int,
        workers: int | None,
        device: torch.device,
        max_broken: float = 0.0,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Check that the views and the batch size fit together. Workers start with the first epoch.

        Args:
            examples: The training split.
            views: One view, or one for each part of the run.
            batches: The sampler: which examples make up each batch of this process.
            epochs: Number of epochs of the whole run.
            workers: Number of worker processes, as in `make_loader`.
            device: The device that the batches are moved to.
            max_broken: The largest share of the images that may be broken. Each broken image is replaced by another
                one. Each process counts on its own, since over the epochs it may load every image.
            max_pixels: Images with more pixels are broken.

        Raises:
            InputError: There are no examples, there are more views than epochs, or a view does not support the batch
                size.
        """
        if not len(examples):
            raise InputError("data: the training split holds no images")
        if not 1 <= len(views) <= epochs:
            raise InputError(
                f"augment.image_sizes: holds {len(views)} sizes; must be 1 to {epochs}, the epochs of the run"
            )
        for view in views:
            view.check_batch_size(batches.batch_size)
            view.check_kind(examples.target_kind)
        self.examples, self.views, self.epochs = examples, views, epochs
        self.batches, self.workers, self.device, self.max_pixels = batches, workers, device, max_pixels
        self.broken = BrokenImages(max_broken, len(examples))
        self.part: int | None = None  # the part of the run for which self.loader was made
        self.loader: DataLoader | None = None

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches of one epoch.

        Args:
            epoch: Number of the epoch, from 0. Epochs after the last one of the run use the last view.
            start: Number of batches to skip, for a resume within an epoch. They are not loaded, and the batches after
                them are the same as in an epoch from its start.
        """
        self.batches.epoch, self.batches.start = epoch, start
        end: float | None = None
        try:
            for number, collated in enumerate(batches_of(self.loader_for(epoch)), start):
                self.broken.add(collated.broken)
                if self.broken.are_too_many:  # look for others, so that the error lists more than one
                    end = end or time.monotonic() + SEARCH_SECONDS
                    if time.monotonic() > end:
                        break
                    continue
                seed = [self.batches.seed, epoch, number]
                yield self.view.to_device(collated.samples, self.device, collated.seeds, seed)
        except BrokenImageError as error:  # nor could others be read in place of this image
            self.broken.add([str(error)])
            if not self.broken.are_too_many:
                raise
        if self.broken.are_too_many:
            raise self.broken.error()

    def loader_for(self, epoch: int) -> DataLoader:
        """Return the current DataLoader with its workers, or make a new one if the epoch needs another view."""
        part = min(epoch, self.epochs - 1) * len(self.views) // self.epochs
        if self.loader is None or part != self.part:
            self.loader = None  # ends the workers of the old loader before the new ones start
            self.part, self.view = part, self.views[part]
            viewed = ViewedExamples(self.examples, self.view, replace=True, max_pixels=self.max_pixels)
            self.loader = make_loader(viewed, self.batches, self.workers, self.device, keep_workers=True)
        return self.loader


class EvalLoader:
    """Yields evaluation batches. Each example of the split is loaded exactly once, by one of the processes."""

    def __init__(
        self,
        examples: Examples,
        view: View,
        batch_size: int,
        *,
        workers: int | None,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if not len(examples):
            raise InputError("data: the validation split holds no images")
        batches = EvalBatches(len(examples), batch_size, rank=rank, world_size=world_size)
        self.view, self.batches, self.workers, self.device = view, batches, workers, device
        self.viewed = ViewedExamples(examples, view, replace=False, max_pixels=max_pixels)
        self.loader = make_loader(self.viewed, batches, workers, device, keep_workers=False)

    def __len__(self) -> int:
        """Return the number of batches of this process."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for number, collated in enumerate(batches_of(self.loader)):
            yield self.view.to_device(collated.samples, self.device, collated.seeds, [number])


class Collated(NamedTuple):
    """A batch as a worker sends it."""

    samples: Any
    """What the view's `collate` returned."""
    seeds: list[int]
    """The seed of each sample."""
    broken: list[str]
    """Descriptions of the images that could not be decoded and were replaced."""


def make_loader(
    viewed: ViewedExamples,
    batches: TrainBatches | EvalBatches,
    workers: int | None,
    device: torch.device,
    *,
    keep_workers: bool,
) -> DataLoader:
    """Make the DataLoader.

    Args:
        workers: Number of worker processes; 0 loads in the main process, and None starts one for each core at hand.
        keep_workers: Whether its workers continue to run between epochs.
    """
    workers = default_workers() if workers is None else workers
    # torch warns of more workers than cores, but workers that wait for a slow disk use no core.
    warnings.filterwarnings("ignore", "This DataLoader will create")
    return DataLoader(
        viewed,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=Collate(viewed.view),
        prefetch_factor=PREFETCHED if workers else None,
        worker_init_fn=begin_worker,
        pin_memory=device.type == "cuda",
        persistent_workers=keep_workers and workers > 0,
    )


class Collate:
    """Combines samples into a batch. If a sample is an error, the first error is returned instead."""

    def __init__(self, view: View) -> None:
        self.view = view

    def __call__(self, items: list[ViewedSample | InputError]) -> Collated | InputError | SharedMemoryError:
        good: list[ViewedSample] = []
        for item in items:
            if isinstance(item, InputError):
                return item
            good.append(item)
        try:
            samples = self.view.collate([item.sample for item in good])
            share(samples)
        except SharedMemoryError as error:
            return error
        return Collated(
            samples,
            [item.seed for item in good],
            [description for item in good for description in item.broken],
        )


def batches_of(loader: DataLoader) -> Iterator[Collated]:
    """Yield the batches of one epoch. A batch is valid until the next one is requested, as workers reuse its memory.

    Raises:
        InputError: A worker returned an error.
        WorkerKilledError: A worker was killed.
        SharedMemoryError: There is too little shared memory.
    """
    handler_before = without_torch_handler(signal.getsignal(signal.SIGCHLD))
    mappings = HeldMappings(loader.num_workers)
    try:
        require_shared_memory(loader.num_workers)
        batches = iter(loader)
        # torch has installed a SIGCHLD handler that raises at any point of the program when a worker dies. Remove it:
        # the loop below notices a dead worker, too, within seconds.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler_before)
        for collated in batches:
            if isinstance(collated, InputError | SharedMemoryError):
                raise collated
            mappings.hold(collated.samples)
            yield collated
    except (RuntimeError, ConnectionError, EOFError) as error:
        # A killed worker shows as a RuntimeError of the DataLoader or of its pinning thread, or as a ConnectionError
        # or EOFError while the worker's batch is received. "Caught " marks an exception raised within a live worker.
        killed_messages = ("DataLoader worker", "Pin memory thread")
        killed = any(part in str(error) for part in killed_messages) or not isinstance(error, RuntimeError)
        if loader.num_workers == 0 or not killed or str(error).startswith("Caught "):
            raise
        raise WorkerKilledError(
            f"a data worker was killed ({' '.join(str(error).split())}); where memory is short, lower data.workers"
        ) from None


def without_torch_handler(handler: Any) -> Any:
    """Return the signal handler, or SIG_DFL if it is the one that torch installs with a process's first DataLoader."""
    is_not_torchs = callable(handler) and not handler.__module__.startswith("torch.")
    return handler if is_not_torchs or isinstance(handler, signal.Handlers) else signal.SIG_DFL
