"""ImageNet, or any labelled images, in webdataset's shards: on this disk, over HTTP, or in a bucket."""

import math
import os
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import numpy as np
import torch

from ..caches import cache_folder
from ..encoded_image import EncodedImage
from ..errors import DataError
from ..images import Images, numbers_in
from ..shards.cache import Ahead, Cache
from ..shards.fetching import Patience, read_remote
from ..shards.index import (
    HEADER,
    INDEX,
    Index,
    Located,
    Positions,
    ShardError,
    is_remote,
    join,
    locate,
    member_name,
    parse_index,
    scan,
)

GB = 10**9
OPEN_SHARDS = 64
"""What a process keeps open at least; not of a cache, where a removed file takes its room until it is closed."""
KNOWN_SAMPLES = 2**21
"""Samples whose positions a process remembers: 40 MB of them, all of ImageNet-1k."""

V = TypeVar("V")


class ImageNetShards:
    """Shards of samples KEY.jpg (or another image) and KEY.cls (a number), with an index.json beside them.

    urls and val_urls name folders or shards: paths, http(s):// or s3://, with *, ?, […] in a shard's name and {a..b}
    anywhere. Remote shards are kept in cache_dir, up to cache_gb (10⁹ bytes). Training goes through the shards in
    random order, `shuffle_shards` of them at a time, whose images are shuffled among each other.

    retries, timeout (s) and backoff (s) are those of `Patience`.
    """

    def __init__(
        self,
        *,
        urls: str | list[str] | None = None,
        val_urls: str | list[str] | None = None,
        shuffle_shards: int = 16,
        cache_dir: str | None = None,
        cache_gb: float = 200.0,
        retries: int = 5,
        timeout: float = 60.0,
        backoff: float = 1.0,
    ) -> None:
        for option, value, least in (
            ("shuffle_shards", shuffle_shards, 1),
            ("retries", retries, 0),
            ("backoff", backoff, 0),
        ):
            if not least <= value < math.inf:
                raise DataError(f"data.{option}={value}: must be at least {least}, and finite")
        for option, value in (("cache_gb", cache_gb), ("timeout", timeout)):
            if not 0 < value < math.inf:
                raise DataError(f"data.{option}={value}: must be greater than 0, and finite")
        self.urls, self.val_urls, self.shuffle_shards = urls, val_urls, shuffle_shards
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else cache_folder("shards")
        self.cache_gb, self.patience = cache_gb, Patience(retries, timeout, backoff)

    def train(self) -> "ShardImages":
        return self.split(self.urls, "data.urls", None)

    def val(self, classes: list[str] | None = None) -> "ShardImages":
        return self.split(self.val_urls, "data.val_urls", classes)

    def split(self, urls: str | list[str] | None, option: str, classes: list[str] | None) -> "ShardImages":
        if not urls:
            raise DataError(
                f"{option}: must be given: a folder of shards, or shards, as {option}=/path/{{000..146}}.tar"
            )
        names, shards = locate(urls, option, self.read_index)
        require_local(shards)
        folder = shards[0].address.rpartition("/")[0]
        numbers = numbers_in(classes, names, Path(folder.rpartition("://")[2]))
        cache = self.make_cache([located.shard.bytes for located in shards if located.is_remote])
        return ShardImages(shards, np.array(numbers), classes or names, cache, self.shuffle_shards)

    def read_index(self, folder: str) -> Index:
        """The index of a folder.

        Raises:
            DataError: there is none.
        """
        address = join(folder, INDEX)
        try:
            text = read_remote(address, self.patience) if is_remote(address) else Path(address).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"{address}: no such file; shards are used by the index beside them, which "
                "`python scripts/make_shards.py --index-only FOLDER` makes"
            ) from None
        except OSError as error:
            raise DataError(f"{address}: cannot be read ({error.strerror})") from None
        return parse_index(text, address)

    def make_cache(self, sizes: list[int]) -> Cache | None:
        """Where shards of these sizes (bytes), the remote ones, are kept: as many as are in use at a time must fit."""
        if not sizes:
            return None
        limit = round(self.cache_gb * GB)
        needed = sum(sorted(sizes)[-2 * self.shuffle_shards :])
        if limit < needed:
            raise DataError(
                f"data.cache_gb={self.cache_gb:g}: must be at least {needed / GB:.3g} for data.shuffle_shards="
                f"{self.shuffle_shards}: the shards in use and the next ones"
            )
        return Cache(self.cache_dir, limit, self.patience)


class ShardImages(Images):
    """The images of shards, in the shards' order; any can be asked for, but neighbours come cheapest.

    A process holds open the shards that it used last, remembers where the samples of the last ones lie, and lets a
    thread fetch what comes next; all this begins with the first image, so that a process may fork before.
    """

    def __init__(
        self, shards: list[Located], numbers: np.ndarray, classes: list[str], cache: Cache | None, shuffle_shards: int
    ) -> None:
        """numbers: the label here of each class of the index; cache: for remote shards."""
        self.shards, self.numbers, self.classes = shards, numbers, classes
        self.cache, self.shuffle_shards = cache, shuffle_shards
        self.ends = np.cumsum([located.shard.samples for located in shards])
        # The order in which the shards are gone through. In shared memory, as `shuffled` is called in the process that
        # draws the batches, and its workers are to know what comes next.
        self.shard_order = torch.arange(len(shards)).share_memory_()
        self.reader: Reader | None = None

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> tuple[EncodedImage, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self.ends, index, side="right"))
        if self.reader is None or self.reader.process != os.getpid():
            order = self.shard_order.numpy()
            self.reader = Reader(self.shards, self.cache, len(self.numbers), order, self.shuffle_shards)
        first = int(self.ends[number]) - self.shards[number].shard.samples
        image, label = self.reader.read(number, index - first)
        return image, int(self.numbers[label])

    def shuffled(self, random: np.random.Generator) -> np.ndarray:
        """All indices once: the shards in random order, the samples of each `shuffle_shards` shards mixed."""
        order = random.permutation(len(self.shards))
        self.shard_order.copy_(torch.from_numpy(order))
        windows = np.split(order, range(self.shuffle_shards, len(order), self.shuffle_shards))
        return np.concatenate([random.permutation(np.concatenate([*map(self.indices, w)])) for w in windows])

    @property
    def order(self) -> dict[str, object]:
        return {"data.shuffle_shards": self.shuffle_shards, "the number of shards": len(self.shards)}

    def indices(self, number: int) -> np.ndarray:
        """The indices of a shard's samples."""
        return np.arange(self.ends[number] - self.shards[number].shard.samples, self.ends[number])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"reader": None}


def require_local(shards: list[Located]) -> None:
    """Refuse a shard on this disk that is missing or has another size than its index says; every process finds it."""
    for located in shards:
        if not located.is_remote:
            try:
                with open_local(located.address) as file:
                    require_size(file, located)
            except ShardError as error:
                raise DataError(str(error)) from None


def open_local(path: str) -> IO[bytes]:
    try:
        return Path(path).open("rb", buffering=0)
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from None


def require_size(file: IO[bytes], located: Located) -> None:
    address, shard = located
    size = os.fstat(file.fileno()).st_size
    if size != shard.bytes:
        raise ShardError(f"{address}: has {size:,} bytes where {INDEX} has {shard.bytes:,}")


class Reader:
    """What one process has open."""

    def __init__(
        self, shards: list[Located], cache: Cache | None, classes: int, order: np.ndarray, shuffle_shards: int
    ) -> None:
        self.shards, self.cache, self.classes = shards, cache, classes
        self.order, self.shuffle_shards = order, shuffle_shards
        self.process = os.getpid()
        self.files: Recent[IO[bytes]] = Recent(2 * shuffle_shards if cache else max(OPEN_SHARDS, 2 * shuffle_shards))
        self.positions: Recent[Positions] = Recent(KNOWN_SAMPLES)
        self.ahead = Ahead(cache) if cache else None
        self.failure: ShardError | None = None

    def read(self, number: int, sample: int) -> tuple[EncodedImage, int]:
        """(image, number of its class in the index) of a shard's sample.

        Raises:
            DataError: the shard is not there, or not what the index says.
        """
        address = self.shards[number].address
        file = self.files.get(number) or self.open(number)
        positions = self.positions.get(number) or self.scan(number, file)
        offset, size = int(positions.offsets[sample]), int(positions.sizes[sample])
        try:
            content = os.pread(file.fileno(), HEADER + size, offset - HEADER)
        except OSError as error:
            raise ShardError(f"{address}: cannot be read ({error.strerror})") from None
        if len(content) != HEADER + size:
            raise ShardError(f"{address}: has become shorter while it was read")
        origin = f"{address}/{member_name(content[:HEADER])}"
        return EncodedImage(content[HEADER:], origin), int(positions.labels[sample])

    def open(self, number: int) -> IO[bytes]:
        located = self.shards[number]
        address = located.address
        if self.cache and self.ahead and located.is_remote:
            if self.failure:  # a worker is asked for the rest of its batches, too: it is not to wait for each in vain
                raise self.failure
            self.ahead.fetch(self.coming(number))
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
        address, shard = self.shards[number]
        positions = scan(file, address, self.classes)
        if len(positions) != shard.samples:
            raise ShardError(f"{address}: has {len(positions)} samples where {INDEX} has {shard.samples}")
        return self.positions.keep(number, positions, len(positions))

    def coming(self, number: int) -> list[Located]:
        """The other shards of the window that a shard is in, and those of the next."""
        place = int(np.flatnonzero(self.order == number)[0])
        start = place - place % self.shuffle_shards
        coming = self.order[start : start + 2 * self.shuffle_shards]
        return [self.shards[other] for other in coming.tolist() if other != number]


class Recent(Generic[V]):
    """The values used last, up to a weight in all."""

    def __init__(self, limit: int) -> None:
        self.limit, self.weight = limit, 0
        self.kept: OrderedDict[int, tuple[V, int]] = OrderedDict()

    def get(self, key: int) -> V | None:
        if key not in self.kept:
            return None
        self.kept.move_to_end(key)
        return self.kept[key][0]

    def keep(self, key: int, value: V, weight: int) -> V:
        """Keep a new value, and let go of the oldest that have no room beside it."""
        self.kept[key] = value, weight
        self.weight += weight
        while self.weight > self.limit and len(self.kept) > 1:
            _, (_, freed) = self.kept.popitem(last=False)
            self.weight -= freed
        return value
