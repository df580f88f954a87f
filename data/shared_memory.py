"""Memory that a worker shares with the training process: in it the pixels of a batch change hands.

It is used again and again. Memory that is new for every batch costs a tenth of all that a worker does: the system
clears each page of it, and maps it in both processes. For a GPU, torch's thread that pins memory still maps each batch
anew: only what the worker does is saved.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

PREFETCHED = 2
"""Batches that each worker makes ahead."""


class Mapped:
    """The slots that this process has mapped: torch maps anew what nobody holds."""

    def __init__(self) -> None:
        self.slots: dict[int, Tensor] = {}

    def hold(self, batch: object) -> None:
        if isinstance(batch, Tensor) and batch.is_shared():
            self.slots[batch.data_ptr()] = batch


class Slots:
    """As many as can be filled before the first is free again: those made ahead, and the one that is being read."""

    def __init__(self) -> None:
        self.slots: list[Tensor] = []
        self.turn = 0

    def stack(self, images: Sequence[Tensor]) -> Tensor:
        """One batch, (B, …), of images of one shape. In a worker it is valid until the next but PREFETCHED."""
        if get_worker_info() is None:
            return torch.stack(list(images))
        shape = torch.Size((len(images), *images[0].shape))
        if not self.slots or self.slots[0].shape[1:] != shape[1:] or len(self.slots[0]) < len(images):
            self.slots = [torch.empty(shape, dtype=images[0].dtype).share_memory_() for _ in range(PREFETCHED + 1)]
        self.turn = (self.turn + 1) % len(self.slots)
        return torch.stack(list(images), out=self.slots[self.turn][: len(images)])
