"""Buffers in shared memory that a worker reuses for its batches.

A new buffer for each batch takes a tenth of a worker's time: the operating system clears each page and maps it into
both processes. With a GPU only the worker's part is saved, since torch's pin_memory thread maps each batch again.
"""

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import get_worker_info

PREFETCHED = 2
"""The DataLoader's prefetch_factor: the number of batches that each worker prepares in advance."""


class HeldMappings:
    """Holds the shared tensors of the last batches, so that torch does not map a buffer again when it comes back.

    A worker fills its buffers in turn, so the last `num_workers` × (PREFETCHED + 1) batches hold every buffer. Older
    batches are dropped: tensors of a view that does not use `SharedBuffers` are new in each batch.
    """

    def __init__(self, num_workers: int) -> None:
        self.batches: deque[list[Tensor]] = deque(maxlen=max(1, num_workers) * (PREFETCHED + 1))

    def hold(self, collated: object) -> None:
        """Hold the shared tensors of a nested batch."""
        self.batches.append([x for x in tree_leaves(collated) if isinstance(x, Tensor) and x.is_shared()])


class SharedBuffers:
    """Stacks tensors into shared buffers: one for each prefetched batch and one for the batch that is being read."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []
        self.turn = 0

    def stack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Stack tensors of the same shape: (…) each → (B, …).

        In a worker the result remains valid while PREFETCHED further batches are stacked. Outside of workers this is
        torch.stack.
        """
        if get_worker_info() is None:
            return torch.stack(list(tensors))
        # Allocate new buffers for the first batch, and again if a batch has another shape or is larger.
        shape = torch.Size((len(tensors), *tensors[0].shape))
        if not self.buffers or self.buffers[0].shape[1:] != shape[1:] or len(self.buffers[0]) < len(tensors):
            self.buffers = [torch.empty(shape, dtype=tensors[0].dtype).share_memory_() for _ in range(PREFETCHED + 1)]
        # Use the buffers in turn.
        self.turn = (self.turn + 1) % len(self.buffers)
        return torch.stack(list(tensors), out=self.buffers[self.turn][: len(tensors)])

    def __getstate__(self) -> dict[str, object]:
        return {"buffers": [], "turn": 0}  # a worker started by spawn allocates its own buffers
