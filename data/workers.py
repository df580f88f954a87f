"""Setup of the data workers, and their end when the program exits."""

import atexit
import ctypes
import multiprocessing
import signal

# Option numbers of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 << 20
"""The largest value that glibc accepts, in bytes."""


def begin_worker(worker: int) -> None:
    """Set up a worker process. This is the DataLoader's worker_init_fn."""
    ignore_signals()
    keep_freed_memory()


def ignore_signals() -> None:
    """Ignore the signals that stop a job: launchers often send them to workers, too, and the main process decides."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def keep_freed_memory() -> None:
    """Make malloc keep freed memory for the next image, so that the system need not clear and map new pages.

    For large photographs this saves a twentieth of the time. Without glibc this function does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, 2**30)


@atexit.register
def end_workers() -> None:
    """Kill the workers at exit. multiprocessing sends SIGTERM, which workers ignore, and would then wait forever."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
