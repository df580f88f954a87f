"""The number of data workers, their setup, and their end when the program exits."""

import atexit
import ctypes
import multiprocessing
import os
import signal
import threading
from pathlib import Path

# Option numbers of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 << 20
"""The largest value that glibc accepts, in bytes."""
MOST_WORKERS = 8
"""The largest number of workers that a process gets by default. More of them take memory, and seldom load faster."""
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Linux's limit of a container's CPU time (cgroup v2): "QUOTA PERIOD" in µs, or "max PERIOD"."""


def default_workers() -> int:
    """Return the number of workers for data.workers=null: the cores of this process, from 1 to `MOST_WORKERS`.

    Processes that torchrun started on this machine share its cores equally.
    """
    # macOS and Windows cannot tell which cores this process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(CPU_QUOTA)
    if quota is not None:
        cores = min(cores, round(quota))
    return min(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))), MOST_WORKERS)


def cpu_quota(path: Path) -> float | None:
    """Return the number of cores that a container may use, or None if it has no limit."""
    try:
        quota, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def begin_worker(worker: int) -> None:
    """Set up a worker process. This is the DataLoader's worker_init_fn."""
    ignore_signals()
    end_with_parent()
    keep_freed_memory()


def ignore_signals() -> None:
    """Ignore the signals that stop a job: launchers often send them to workers, too, and the main process decides."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def end_with_parent() -> None:
    """End this worker process when its parent ends, even if that is killed and the worker waits for a server."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
