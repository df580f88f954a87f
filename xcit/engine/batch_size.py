"""train.batch_size=auto: finds how many images of an update fit into the memory at once."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..device import is_out_of_memory
from ..errors import InputError, print_note
from . import distributed
from .numerics import autocast
from .task import Task

SHARE_OF_GPU = 0.9
"""Of a GPU's free memory; the rest is for fragmentation."""
COPIES_LATER = 3
"""Copies of the weights that the run has besides those of a trial: of AdamW (2), and DDP's gradients or the EMA."""
SHARE_OF_CPU = 0.25
"""Of the machine's memory, for what the passes of all its processes keep for their backward passes."""


class Batches(Protocol):
    def epoch(self, epoch: int) -> Iterator[Any]: ...


class TooLargeError(Exception):
    """A pass does not fit."""


def find_accumulate(task: Task, trials: Iterable[tuple[int, Batches]], device: torch.device, precision: str) -> int:
    """The first of the trials whose forward and backward pass fits into the memory of every process.

    On a GPU it must leave a tenth of the free memory, and what the optimizer and the EMA need. On a CPU, what the pass
    keeps for its backward pass may take a quarter of the machine's memory, divided by the processes on it.

    Args:
        task: it stays as it is; a copy is tried. Its BatchNorms are not synchronised yet.
        trials: (passes for each update, batches of such a pass), the largest pass first.

    Raises:
        InputError: none fits.
    """
    copy = deepcopy(task).train()
    with distributed.main_first():
        copy.begin_training(device)
    for accumulate, batches in trials:
        if not distributed.greatest(int(not fits(copy, next(batches.epoch(0)), device, precision))):
            if distributed.is_main():
                print_note(f"train.batch_size=auto: a pass fits with train.accumulate={accumulate}")
            return accumulate
    raise InputError(
        "train.batch_size=auto: not even the smallest pass fits into the memory; a smaller data.image_size, "
        "train.grad_checkpointing=true or train.precision=bf16 takes less"
    )


def fits(task: nn.Module, batch: Any, device: torch.device, precision: str) -> bool:
    """Whether a forward and a backward pass fits into the memory of this process.

    The pass waits for no other process, since it may end in the middle while the passes of others go on.
    """
    try:
        with distributed.alone(), limited(device, task), autocast(device, precision):
            task(batch)["loss"].backward()
    except (TooLargeError, RuntimeError, MemoryError) as error:
        if not isinstance(error, TooLargeError) and not is_out_of_memory(error):
            raise
        return False
    finally:
        task.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True


@contextmanager
def limited(device: torch.device, task: nn.Module) -> Iterator[None]:
    """Raise a TooLargeError if the passes in this context take more than their share of the memory."""
    if device.type != "cuda":
        with count_kept(SHARE_OF_CPU * memory_of_machine() / int(os.environ.get("LOCAL_WORLD_SIZE", 1))):
            yield
        return
    weights = sum(parameter.nbytes for parameter in task.parameters())
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    free, used = torch.cuda.mem_get_info(device)[0], torch.cuda.memory_allocated(device)
    yield
    if torch.cuda.max_memory_allocated(device) - used + COPIES_LATER * weights > SHARE_OF_GPU * free:
        raise TooLargeError


@contextmanager
def count_kept(limit: float) -> Iterator[None]:
    """Raise a TooLargeError as soon as the tensors kept for the backward pass have more bytes than the limit."""
    kept: dict[int, int] = {}
    total = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in kept:
            kept[storage.data_ptr()] = storage.nbytes()
            total += storage.nbytes()
        if total > limit:
            raise TooLargeError
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield


def memory_of_machine() -> int:
    """In bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
