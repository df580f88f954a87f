"""The processes that load: how they begin, and how they end."""

import atexit
import ctypes
import multiprocessing
import signal

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST_MMAP_THRESHOLD = 32 << 20


def begin_worker(worker: int) -> None:
    outlive_signals()
    keep_memory()


def outlive_signals() -> None:
    """Leave it to the training process when to stop: what ends a job is often sent to its workers as well."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def keep_memory() -> None:
    """What one image took is kept for the next: given back, the system would have to clear it page by page again.

    For large photographs that is a twentieth of the time. Only glibc can be told so; elsewhere nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, 2**30)


@atexit.register
def end_workers() -> None:
    """At the end by an error multiprocessing sends workers a SIGTERM, which they outlive, and waits for ever."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
