"""Rank, world size and collectives. Other modules use these functions."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..device import default_device
from ..errors import InputError, TrainingError
from .sync_batchnorm import convert_batchnorm, sum_over_processes

T = TypeVar("T")

is_alone = False
"""Set by `alone`."""
PARENT = os.getppid()
PR_SET_PDEATHSIG = 1
"""From Linux's sys/prctl.h: the signal that a process gets when its parent ends."""


@contextmanager
def session() -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did. Yields this process's device: its GPU, or the CPU.

    Raises:
        InputError: there are more processes than GPUs.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    device = default_device()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if device.index >= torch.cuda.device_count():
            gpus = torch.cuda.device_count()
            raise InputError(f"--nproc-per-node: must be {gpus} at most, the number of GPUs here")
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if device.type == "mps":
        raise InputError("--nproc-per-node: must be 1 with MPS; XCIT_DEVICE=cpu runs several processes on the CPU")
    # gloo beside NCCL, so that CPU tensors need not wait for the GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def end_with_parent() -> None:
    """Make the system kill this process when torchrun's agent, its parent, ends.

    An agent that was killed cannot end its processes, and they would train on. The signal is SIGKILL, because a process
    that waits for others in a collective handles no other signal. A checkpoint is complete at any moment.
    """
    if sys.platform == "linux":  # other systems have no prctl
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != PARENT:  # the agent ended before
        os.kill(os.getpid(), signal.SIGKILL)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() and not is_alone else 1


@contextmanager
def alone() -> Iterator[None]:
    """In this context a process waits for no other: sums and means are its own. Not for synchronised BatchNorms."""
    global is_alone
    is_alone = True
    try:
        yield
    finally:
        is_alone = False


def place() -> dict[str, int]:
    """The rank and the number of processes, as keyword arguments of samplers and loaders."""
    return {"rank": rank(), "world_size": world_size()}


def is_main() -> bool:
    """Whether this process writes files and prints. The answer is known before the session starts, too."""
    return rank() == 0 if dist.is_initialized() else int(os.environ.get("RANK", 0)) == 0


def mean(value: Tensor) -> float:
    """The mean of a scalar over all processes."""
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= world_size()
    return value.item()


def total(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes. Gradients flow back to every process."""
    return sum_over_processes(value) if world_size() > 1 else value


def maximum(value: Tensor) -> Tensor:
    """The largest value of each element over all processes; without a gradient."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def from_main(value: T) -> T:
    """The main process's value, in every process."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def on_main(function: Callable[[], T]) -> T:
    """Call the function in the main process alone; return its result, or raise its error, in every process."""
    result: T | None = None
    error: Exception | None = None
    if is_main():
        try:
            result = function()
        except (InputError, TrainingError) as raised:
            error = raised
    result, error = from_main((result, error))
    if error:
        raise error
    return result  # type: ignore[return-value]


def from_all(value: T) -> list[T]:
    """Every process's value, in every process."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def to_main(value: T) -> list[T]:
    """Every process's value in the main process; an empty list in the others."""
    values = [value] * world_size() if is_main() else []
    if world_size() > 1:
        dist.gather_object(value, values if is_main() else None)
    return values


def rows_of_all(own: Tensor) -> Tensor:
    """A tensor whose rows are spread over the processes, whole in every process.

    own: on the CPU, rows r, r + W, r + 2W, … in process r of W, as `EvalBatches` spreads a data set.
    """
    if world_size() == 1:
        return own
    counts = from_all(len(own))
    # One collective needs one shape: every process sends as many rows as the one that has most.
    padded = own.new_zeros(max(counts), *from_main(own.shape[1:]))
    if len(own):
        padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten(0, 1)[: sum(counts)]


def greatest(value: int) -> int:
    """The largest of all processes' values; the GPUs are not used."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def wait_for_all() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """One process of each machine runs the block first, so that the others find its downloads in the cache."""
    first = int(os.environ.get("LOCAL_RANK", rank())) == 0
    if not first:
        wait_for_all()
    try:
        yield
    except Exception:  # not after a signal, which stops the others, too: they may never come here
        if first:
            wait_for_all()
        raise
    if first:
        wait_for_all()


def parallelise(module: nn.Module, device: torch.device) -> nn.Module:
    """The module in DistributedDataParallel if there are several processes: gradients are averaged over them."""
    if world_size() == 1:
        return module
    return nn.parallel.DistributedDataParallel(module, device_ids=[device.index] if device.type == "cuda" else None)


def gradients_stay(module: nn.Module, stay: bool) -> AbstractContextManager:
    """Skip DDP's gradient averaging; used for all but the last accumulation step."""
    return module.no_sync() if stay and isinstance(module, nn.parallel.DistributedDataParallel) else nullcontext()


def synchronise_batchnorm(module: nn.Module, device: torch.device) -> None:
    """Compute BatchNorm statistics over all processes if there are several."""
    if world_size() > 1:
        convert_batchnorm(module, device)
