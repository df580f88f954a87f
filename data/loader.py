"""Batches on the device. The one shape that a batch has in the whole program is defined here."""

import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from .errors import DataError
from .images import Images, Transform, TransformedImages
from .mixing import Mixing
from .samplers import EvalBatches, TrainBatches


class Batch(NamedTuple):
    """Images on the device, and what they show."""

    images: Tensor
    """(B, 3, H, W), fp32, normalised by the model's mean and deviation."""
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
        channels_last: bool = False,
    ) -> None:
        """epochs: of the whole run.

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
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
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
        for number, collated in enumerate(self.loader_for(epoch), start):
            images, labels = to_device(collated, self.device)
            images, targets = self.mixing(images, labels, seed=[self.batches.seed, epoch, number])
            yield Batch(images.contiguous(memory_format=self.memory_format), targets, labels)

    def loader_for(self, epoch: int) -> DataLoader:
        """The loader of the epoch before, with its workers, or a new one where another transform's part begins."""
        part = min(epoch, self.epochs - 1) * len(self.transforms) // self.epochs
        if self.loader is None or part != self.part:
            self.loader = None  # its last reference: its workers end before others start
            self.part, transform = part, self.transforms[part]
            self.loader = make_loader(
                self.images, transform, self.batches, self.workers, self.device, keep_workers=True
            )
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
        self.loader = make_loader(images, transform, batches, workers, device, keep_workers=False)

    def __iter__(self) -> Iterator[Batch]:
        for collated in self.loader:
            images, labels = to_device(collated, self.device)
            yield Batch(images, F.one_hot(labels, self.num_classes).float(), labels)


def make_loader(
    images: Images,
    transform: Transform,
    batches: TrainBatches | EvalBatches,
    workers: int,
    device: torch.device,
    *,
    keep_workers: bool,
) -> DataLoader:
    return DataLoader(
        TransformedImages(images, transform),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=outlive_signals,
        pin_memory=device.type == "cuda",
        persistent_workers=keep_workers and workers > 0,
    )


def outlive_signals(worker: int) -> None:
    """Leave it to the training process when to stop: what ends a job is often sent to its workers as well."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def collate(samples: list) -> list[Tensor] | DataError:
    return next((sample for sample in samples if isinstance(sample, DataError)), None) or default_collate(samples)


def to_device(collated: list[Tensor] | DataError, device: torch.device) -> tuple[Tensor, Tensor]:
    if isinstance(collated, DataError):
        raise collated
    images, labels = collated
    return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
