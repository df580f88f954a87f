"""Time and peak memory of an evaluation, and of a forward pass at several resolutions."""

import ctypes
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import torch

ENOUGH_SECONDS, MOST_TURNS, CALLS = 0.5, 4, 3
"""`growth` measures a resolution in that many turns of that many calls, or until its turns would take longer than these
seconds on average."""
M_ARENA_MAX = -8
"""glibc's number for the option of mallopt."""


class Meter:
    """Measures seconds and peak memory of a block: `with Meter(device) as meter:`.

    The peak is in MB of 10⁶ bytes: of the tensors on a CUDA GPU, or else of the whole process (0 if the system does not
    tell).
    """

    seconds: float
    peak_memory_mb: float

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            reset_peak_of_process()
        self.started = time.perf_counter()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - self.started
        if self.device.type == "cuda":
            self.peak_memory_mb = torch.cuda.max_memory_allocated(self.device) / 1e6
        else:
            self.peak_memory_mb = peak_of_process() / 1e6


class Cost(NamedTuple):
    """What a forward pass takes at one resolution."""

    resolution: int
    """In pixels."""
    seconds: float
    memory_mb: float
    """MB of 10⁶ bytes that are needed above those in use before: of a GPU's tensors, or of the process on a CPU."""


def cost_of(run: Callable[[int], object], resolution: int, device: torch.device) -> Cost:
    """What `run` takes at a resolution. On a CPU, no other thread should allocate memory meanwhile."""
    release_free_memory()
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else memory_of_process("VmRSS")
    with Meter(device) as meter:
        run(resolution)
    return Cost(resolution, meter.seconds, max(0.0, meter.peak_memory_mb - before / 1e6))


def growth(
    run: Callable[[int], object], resolutions: Sequence[int], device: torch.device, budget: float = math.inf
) -> list[Cost]:
    """What `run` takes at each resolution, in ascending order.

    After a first call, it is the shortest time and the median of the memory of up to 12 more. The resolutions take
    turns, so that other work on the machine does not slow down one of them alone. A turn has several calls, because the
    first one finds the caches of the processor filled by another resolution.

    It ends before a resolution that would exceed `budget` seconds in total, if the time grows as the pixels do. The
    first resolution is measured in any case.
    """
    found: dict[int, list[Cost]] = {}
    started = time.perf_counter()
    for resolution in sorted(resolutions):
        if found:
            last, [cost] = list(found.items())[-1]
            next_call = cost.seconds * (resolution / last) ** 2
            if time.perf_counter() - started + 2 * next_call > budget:
                break
        run(resolution)  # the first call at a resolution computes what later ones keep
        found[resolution] = [cost_of(run, resolution, device)]
    one_turn = CALLS * sum(costs[0].seconds for costs in found.values())
    end = min(started + budget, time.perf_counter() + ENOUGH_SECONDS * len(found))
    for _ in range(MOST_TURNS):
        if time.perf_counter() + one_turn > end:
            break
        for resolution, costs in found.items():
            costs += [cost_of(run, resolution, device) for _ in range(CALLS)]
    return [
        Cost(resolution, min(cost.seconds for cost in costs), statistics.median(cost.memory_mb for cost in costs))
        for resolution, costs in found.items()
    ]


def share_free_memory() -> None:
    """Let all threads allocate from the same memory, if there are no others yet. Does nothing without glibc.

    Otherwise each has memory of its own, part of which `release_free_memory` cannot return to the system, and a thread
    would seem to need less than the first one for the same work.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def release_free_memory() -> None:
    """Return freed memory to the system, since it would hide what is needed next. Does nothing without glibc."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak_of_process() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed: the peak is then that since the start
        return


def peak_of_process() -> int:
    """Bytes."""
    return memory_of_process("VmHWM")


def memory_of_process(field: str) -> int:
    """Bytes; 0 if the system does not tell. field: of /proc/self/status: VmRSS for now, VmHWM for the peak."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{field}:")), 0)
