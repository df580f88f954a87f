"""Reads samples of shards: what one process has open, and what it remembers."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import IO, Generic, TypeVar

import numpy as np

from xcit.credentials import without_credentials
from xcit.encoded_image import EncodedImage

from .cache import Cache, Prefetcher
from .index import HEADER, INDEX, LocatedShard, Positions, ShardError, find_samples, member_name

OPEN_SHARDS = 64
"""The least number of local shards that a process may keep open. For cached ones the limit is 2 * shuffle_shards, since
a file that was removed from the cache takes disk space until it is closed."""
REMEMBERED_SAMPLES = 2**21
"""The number of samples whose positions a process remembers: 40 MB, enough for all of ImageNet-1k."""

V = TypeVar("V")


def open_local(path: str) -> IO[bytes]:
    """Open a local shard, or raise a ShardError."""
    try:
        return Path(path).open("rb", buffering=0)
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from None


def require_size(file: IO[bytes], located: LocatedShard) -> None:
    """Raise a ShardError if an open shard has another size than in its index."""
    address, shard = located.address, located.shard
    size = os.fstat(file.fileno()).st_size
    if size != shard.bytes:
        raise ShardError(f"{address}: has {size:,} bytes where {INDEX} has {shard.bytes:,}")


class Reader:
    """Reads samples of shards within one process. It keeps files open, remembers positions and prefetches shards."""

    def __init__(
        self, shards: list[LocatedShard], cache: Cache | None, classes: int, order: np.ndarray, shuffle_shards: int
    ) -> None:
        """classes: the number of classes in the index. order: the shards' order in this epoch, as their numbers."""
        self.shards, self.cache, self.classes = shards, cache, classes
        self.order, self.shuffle_shards = order, shuffle_shards
        self.process = os.getpid()
        # Each open file counts 1, the positions of a shard as many as it has samples.
        self.files: LRUCache[IO[bytes]] = LRUCache(
            2 * shuffle_shards if cache else max(OPEN_SHARDS, 2 * shuffle_shards)
        )
        self.positions: LRUCache[Positions] = LRUCache(REMEMBERED_SAMPLES)
        self.prefetcher = Prefetcher(cache) if cache else None
        self.failure: ShardError | None = None

    def read(self, number: int, sample: int) -> tuple[EncodedImage, int]:
        """Read a sample: number of the shard, number of the sample in it → (image, index of its class).

        Raises:
            ShardError: The shard is missing, cannot be fetched or read, or does not match the index.
        """
        address = self.shards[number].address
        file = self.files.get(number) or self.open(number)
        positions = self.positions.get(number) or self.scan(number, file)
        offset, size = int(positions.offsets[sample]), int(positions.sizes[sample])
        # Read the image together with the tar header before it, which holds the image's name.
        try:
            content = os.pread(file.fileno(), HEADER + size, offset - HEADER)
        except OSError as error:
            raise ShardError(f"{address}: cannot be read ({error.strerror})") from None
        if len(content) != HEADER + size:
            raise ShardError(f"{address}: was truncated while it was being read")
        origin = f"{without_credentials(address)}/{member_name(content[:HEADER])}"
        return EncodedImage(content[HEADER:], origin), int(positions.labels[sample])

    def open(self, number: int) -> IO[bytes]:
        """Open a shard and keep it open. Fetch a remote one and start fetching the next ones."""
        located = self.shards[number]
        address = located.address
        if self.cache and self.prefetcher and located.is_remote:
            # After a failure the main process still requests the remaining batches. Fail at once for each of them.
            if self.failure:
                raise self.failure
            self.prefetcher.fetch(self.next_shards(number))
            try:
                file = self.cache.open(located)
            except ShardError as error:
                self.failure = error
                raise
        else:
            file = open_local(address)
        require_size(file, located)
        return self.files.keep(number, file, 1)

    def scan(self, number: int, file: IO[bytes]) -> Positions:
        """Find the samples of a shard and remember their positions."""
        address, shard, _ = self.shards[number]
        positions = find_samples(file, address, self.classes)
        if len(positions) != shard.samples:
            raise ShardError(f"{address}: has {len(positions)} samples where {INDEX} has {shard.samples}")
        return self.positions.keep(number, positions, len(positions))

    def next_shards(self, number: int) -> list[LocatedShard]:
        """Return the other shards of the shard's window and all shards of the next window."""
        place = int(np.flatnonzero(self.order == number)[0])
        start = place - place % self.shuffle_shards
        window = self.order[start : start + 2 * self.shuffle_shards]
        return [self.shards[other] for other in window.tolist() if other != number]


class LRUCache(Generic[V]):
    """A cache of the most recently used values (LRU), whose total weight is limited."""

    def __init__(self, limit: int) -> None:
        """limit: the largest total weight. The newest value is kept even if it weighs more."""
        self.limit, self.weight = limit, 0
        self.kept: OrderedDict[int, tuple[V, int]] = OrderedDict()

    def get(self, key: int) -> V | None:
        """Return the value of a key and mark it as used, or return None."""
        if key not in self.kept:
            return None
        self.kept.move_to_end(key)
        return self.kept[key][0]

    def keep(self, key: int, value: V, weight: int) -> V:
        """Add a value and return it. Remove the least recently used ones that exceed the limit."""
        self.kept[key] = value, weight
        self.weight += weight
        while self.weight > self.limit and len(self.kept) > 1:
            _, (_, freed) = self.kept.popitem(last=False)
            self.weight -= freed
        return value
