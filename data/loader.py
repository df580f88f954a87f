"""Batches on the device. The one shape that a batch has in the whole program is defined here."""

from collections.abc import Iterator
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
    """(B, 3, H, W), fp32, normalised by ImageNet's mean and deviation."""
    targets: Tensor
    """(B, K), fp32: the probability of each class; smoothed and mixed in training, one-hot in evaluation."""
    labels: Tensor
    """(B,), int64: the class of each image before mixing."""


class TrainLoader:
    """Augmented batches, an epoch at a time; the order and the augmentation follow from (seed, epoch)."""

    def __init__(
        self,
        images: Images,
        transform: Transform,
        mixing: Mixing,
        batches: TrainBatches,
        *,
        workers: int,
        device: torch.device,
        channels_last: bool = False,
    ) -> None:
        if not len(images):
            raise DataError("data: the training split holds no images")
        if mixing.mixes and batches.batch_size % 2:
            raise DataError(
                f"train.global_batch_size: gives batches of {batches.batch_size} a process; mixing needs pairs"
            )
        self.mixing, self.batches, self.device = mixing, batches, device
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.loader = make_loader(images, transform, batches, workers, device, keep_workers=True)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.batches)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        self.batches.epoch = epoch
        for number, collated in enumerate(self.loader):
            images, labels = to_device(collated, self.device)
            images, targets = self.mixing(images, labels, seed=[self.batches.seed, epoch, number])
            yield Batch(images.contiguous(memory_format=self.memory_format), targets, labels)


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
        pin_memory=device.type == "cuda",
        persistent_workers=keep_workers and workers > 0,
    )


def collate(samples: list) -> list[Tensor] | DataError:
    return next((sample for sample in samples if isinstance(sample, DataError)), None) or default_collate(samples)


def to_device(collated: list[Tensor] | DataError, device: torch.device) -> tuple[Tensor, Tensor]:
    if isinstance(collated, DataError):
        raise collated
    images, labels = collated
    return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
