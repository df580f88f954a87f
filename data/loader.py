"""Batches on the device. The one shape that a batch has in the whole program is defined here."""

import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from .errors import BrokenImageError, DataError, WorkerKilledError, tell
from .images import Images, Sample, Transform, TransformedImages
from .mixing import Mixing
from .samplers import EvalBatches, TrainBatches
from .shared_memory import PREFETCHED, Mapped
from .workers import begin_worker


class Batch(NamedTuple):
    """Images on the device, and what they show."""

    images: Tensor
    """(B, 3, H, W), fp32, normalised by the model's mean and deviation; its channels lie last in memory."""
    targets: Tensor
    """(B, K), fp32: the probability of each class; smoothed and mixed in training, one-hot in evaluation."""
    labels: Tensor
    """(B,), int64: the class of each image before mixing."""


class TrainLoader:
    """Augmented batches, an epoch at a time; the order and the augmentation follow from (seed, epoch).

    With several transforms the run's epochs fall into as many equal parts, one transform for each: image sizes that
    grow, say. The size is then a function of the epoch, too.
    """

    def __init__(
        self,
        images: Images,
        transforms: Sequence[Transform],
        mixing: Mixing,
        batches: TrainBatches,
        *,
        epochs: int,
        workers: int,
        device: torch.device,
        max_broken: float = 0.0,
    ) -> None:
        """
        Args:
            epochs: of the whole run.
            max_broken: how large a share of the images may be broken; each is replaced by another. Every process may
                meet all of them, in one epoch or another.

        Raises:
            DataError: there are no images, more transforms than epochs, or odd batches to mix.
        """
        if not len(images):
            raise DataError("data: the training split holds no images")
        if not 1 <= len(transforms) <= epochs:
            raise DataError(
                f"augment.image_sizes: holds {len(transforms)} sizes; must be 1 to {epochs} (train.epochs={epochs})"
            )
        if mixing.mixes and batches.batch_size % 2:
            raise DataError(
                f"train.global_batch_size: gives batches of {batches.batch_size} a process; mixing needs pairs"
            )
        self.images, self.transforms, self.epochs = images, transforms, epochs
        self.mixing, self.batches, self.workers, self.device = mixing, batches, workers, device
        self.broken = BrokenImages(max_broken, len(images))
        self.part: int | None = None  # which transform the loader below has
        self.loader: DataLoader | None = None

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from 0; one after the last has the last one's transform.

        start: how many of them were learnt from before. They are not loaded, and the others are as with them.
        """
        self.batches.epoch, self.batches.start = epoch, start
        for number, collated in enumerate(batches_of(self.loader_for(epoch)), start):
            self.broken.add(collated.broken)
            images, labels = to_device(collated, self.transform, self.device)
            images, targets = self.mixing(images, labels, seed=[self.batches.seed, epoch, number])
            yield Batch(images, targets, labels)

    def loader_for(self, epoch: int) -> DataLoader:
        """The loader of the epoch before, with its workers, or a new one where another transform's part begins."""
        part = min(epoch, self.epochs - 1) * len(self.transforms) // self.epochs
        if self.loader is None or part != self.part:
            self.loader = None  # its last reference: its workers end before others start
            self.part, self.transform = part, self.transforms[part]
            samples = TransformedImages(self.images, self.transform, replace=True)
            self.loader = make_loader(samples, self.batches, self.workers, self.device, keep_workers=True)
        return self.loader


class EvalLoader:
    """Batches for evaluation, each image of the split exactly once over all processes."""

    def __init__(
        self,
        images: Images,
        transform: Transform,
        batch_size: int,
        *,
        workers: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        batches = EvalBatches(len(images), batch_size, rank=rank, world_size=world_size)
        self.num_classes, self.device = len(images.classes), device
        self.transform = transform
        samples = TransformedImages(images, transform, replace=False)
        self.loader = make_loader(samples, batches, workers, device, keep_workers=False)

    def __iter__(self) -> Iterator[Batch]:
        for collated in batches_of(self.loader):
            images, labels = to_device(collated, self.transform, self.device)
            yield Batch(images, F.one_hot(labels, self.num_classes).float(), labels)


class BrokenImages:
    """The images that cannot be decoded, of those that this process met: each is told of once; too many end the run."""

    def __init__(self, share: float, images: int) -> None:
        self.share, self.images, self.limit = share, images, share * images
        self.known: set[str] = set()

    def add(self, found: Sequence[str]) -> None:
        for description in found:
            if description not in self.known:
                self.known.add(description)
                if len(self.known) > self.limit:
                    raise BrokenImageError(
                        f"{description}; broken images so far: {len(self.known)}, of {self.images:,}; "
                        f"data.max_broken={self.share:g} allows {int(self.limit)}"
                    )
                tell(f"{description}; replaced by another image ({len(self.known)} so far)")


class Collated(NamedTuple):
    """A batch as it comes from a worker."""

    pixels: Any
    labels: list[int]
    seeds: list[int]
    broken: list[str]


def make_loader(
    samples: TransformedImages,
    batches: TrainBatches | EvalBatches,
    workers: int,
    device: torch.device,
    *,
    keep_workers: bool,
) -> DataLoader:
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more than cores: they wait for disks
    return DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=Collate(samples.transform.stacking()),
        prefetch_factor=PREFETCHED if workers else None,
        worker_init_fn=begin_worker,
        pin_memory=device.type == "cuda",
        persistent_workers=keep_workers and workers > 0,
    )


class Collate:
    """Samples → batch, or the first error among them."""

    def __init__(self, stack: Callable[[Sequence[Any]], Any]) -> None:
        self.stack = stack

    def __call__(self, samples: list[Sample | DataError]) -> Collated | DataError:
        good: list[Sample] = []
        for sample in samples:
            if isinstance(sample, DataError):
                return sample
            good.append(sample)
        return Collated(
            self.stack([sample.pixels for sample in good]),
            [sample.label for sample in good],
            [sample.seed for sample in good],
            [description for sample in good for description in sample.broken],
        )


def batches_of(loader: DataLoader) -> Iterator[Collated]:
    """Those of an epoch, or what went wrong in a worker. Each is valid until the next one is asked for."""
    before = without_torchs(signal.getsignal(signal.SIGCHLD))
    mapped = Mapped()
    try:
        batches = iter(loader)
        if threading.current_thread() is threading.main_thread():
            # torch's handler would raise wherever the program happens to be; the loop below sees it within seconds.
            signal.signal(signal.SIGCHLD, before)
        for collated in batches:
            if isinstance(collated, DataError):
                raise collated
            mapped.hold(collated.pixels)
            yield collated
    except (RuntimeError, ConnectionError, EOFError) as error:  # the latter two: it cannot hand over what it made
        of_workers = ("DataLoader worker", "Pin memory thread")  # the thread ends with a worker that was killed
        told = any(part in str(error) for part in of_workers) or not isinstance(error, RuntimeError)
        if loader.num_workers == 0 or not told or str(error).startswith("Caught "):  # caught: by a worker that lives
            raise
        raise WorkerKilledError(
            f"a data worker was killed ({' '.join(str(error).split())}); where memory is short, lower data.workers"
        ) from None


def without_torchs(handler: Any) -> Any:
    """The handler of a signal, if it is not the one that torch sets with the first loader of a process."""
    ours = callable(handler) and not handler.__module__.startswith("torch.")
    return handler if ours or isinstance(handler, signal.Handlers) else signal.SIG_DFL


def to_device(collated: Collated, transform: Transform, device: torch.device) -> tuple[Tensor, Tensor]:
    pixels = collated.pixels.to(device, non_blocking=True)
    return transform.on_device(pixels, collated.seeds), torch.tensor(collated.labels).to(device, non_blocking=True)
