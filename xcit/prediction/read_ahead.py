"""Reads items in threads while the model computes."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Given = TypeVar("Given")
Found = TypeVar("Found")


def read_ahead(items: Iterable[Given], read: Callable[[Given], Found], batch_size: int = 1) -> Iterator[Found]:
    """What `read` makes of each item, in order. Threads read the next batch; no more is in memory."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:  # Pillow decodes and resizes without Python's lock
        left, ahead = iter(items), deque[Future[Found]]()
        while True:
            ahead.extend(pool.submit(read, item) for item in islice(left, workers + batch_size - len(ahead)))
            if not ahead:
                return
            yield ahead.popleft().result()
