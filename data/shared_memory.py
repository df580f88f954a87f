"""Buffers in shared memory that a worker reuses for its batches, and the error if there is too little of it.

A new buffer for each batch takes a tenth of a worker's time: the operating system clears each page and maps it into
both processes. With a GPU only the worker's part is saved, since torch's pin_memory thread maps each batch again.
"""

import shutil
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import get_worker_info

from xcit.errors import TrainingError

SHARED_MEMORY = "/dev/shm"
SEMAPHORES = 8 * 4096
"""The bytes that the semaphores of one queue take at most: a page each."""
PREFETCHED = 2
"""The DataLoader's prefetch_factor: the number of batches that each worker prepares in advance."""


class SharedMemoryError(TrainingError):
    """There is too little shared memory for the batches of the workers."""

    of_one_process = True
    """Under DDP only the process whose worker found it raises it."""

    def __init__(self, message: str = "") -> None:
        """message: for a copy of an error that came from a worker."""
        super().__init__(message or describe_shortage())


def describe_shortage() -> str:
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
        state = f"{usage.free / 1e6:,.1f} MB of {usage.total / 1e6:,.1f} MB are free"
    except OSError as error:
        state = str(error.strerror)
    return (
        f"{SHARED_MEMORY}: too little shared memory for the batches of the data workers ({state}); give the container "
        "more (docker run --shm-size=8g, or --ipc=host), or lower data.workers (0 needs none) or the batch size"
    )


def require_shared_memory(workers: int) -> None:
    """Raise a SharedMemoryError if there is too little for the semaphores of a DataLoader's queues.

    Only Linux keeps them in a file system whose size is limited.
    """
    if sys.platform != "linux":
        return
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        free = 0
    if workers and free < (workers + 1) * SEMAPHORES:
        raise SharedMemoryError


@contextmanager
def shared_memory_errors() -> Iterator[None]:
    """Convert torch's error for too little shared memory to a `SharedMemoryError`."""
    try:
        yield
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        raise SharedMemoryError from None


def share(batch: object) -> None:
    """In a worker, move the tensors of a nested batch to shared memory.

    torch would do so later in a thread, whose errors are lost: the main process would wait for the batch forever.
    """
    if get_worker_info() is not None:
        with shared_memory_errors():
            for leaf in tree_leaves(batch):
                if isinstance(leaf, Tensor) and leaf.numel() and not leaf.is_shared():
                    leaf.share_memory_()


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
            with shared_memory_errors():
                buffers = [torch.empty(shape, dtype=tensors[0].dtype).share_memory_() for _ in range(PREFETCHED + 1)]
            self.buffers = buffers
        # Use the buffers in turn.
        self.turn = (self.turn + 1) % len(self.buffers)
        return torch.stack(list(tensors), out=self.buffers[self.turn][: len(tensors)])

    def __getstate__(self) -> dict[str, object]:
        return {"buffers": [], "turn": 0}  # a worker started by spawn allocates its own buffers
