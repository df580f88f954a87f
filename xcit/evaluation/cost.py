"""Time and peak memory of an evaluation."""

import time
from pathlib import Path
from types import TracebackType
from typing import Self

import torch


class Meter:
    """Measures seconds and peak memory of a block: `with Meter(device) as meter:`.

    The peak is in MB of 10⁶ bytes: of the tensors on a GPU, or of the whole process on a CPU (0 if the system does not
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


def reset_peak_of_process() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed: the peak is then that since the start
        return


def peak_of_process() -> int:
    """Bytes."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)
