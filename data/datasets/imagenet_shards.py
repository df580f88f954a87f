"""ImageNet, or other images with classes, in webdataset shards: on a local disk, over HTTP, or in an S3 bucket."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xcit.credentials import restore_credentials
from xcit.errors import InputError

from ..cache_folder import cache_folder
from ..examples import Example, Examples
from ..shards.cache import Cache
from ..shards.fetching import RetryPolicy, read_remote
from ..shards.index import INDEX, Index, LocatedShard, ShardError, is_remote, join, locate, parse_index
from ..shards.reader import Reader, open_local, require_size
from ..shared_memory import shared_memory_errors
from .image_files import class_indices

GB = 10**9


class ImageNetShards:
    """Images with classes in webdataset shards.

    A shard is a tar file. A sample in it is KEY.jpg (or another image format) and KEY.cls (the number of its class).
    Each folder of shards has an index.json, which docs/shards.md describes.

    Args:
        urls: Training shards: folders, or paths, https:// or s3:// with * and {000..146}; one address or a list.
            http:// works, too. The name of a shard may contain *, ? and […]; {a..b} may stand anywhere.
        val_urls: Validation shards, in the same form.
        shuffle_shards: Number of shards whose images are shuffled together. In training the shards are in random order,
            and the images of each window of so many shards are shuffled together.
        cache_dir: Folder for copies of remote shards, shared by all processes; null: ~/.cache/xcit/shards.
        cache_gb: Largest size of the cache in GB of 10⁹ bytes.
        retries: Further tries after a failed read of a remote shard. See `RetryPolicy`.
        timeout: Seconds without a byte after which a read fails.
        backoff: Seconds before the first retry; doubled before each further one.

    Raises:
        InputError: An option is out of range.
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
                raise InputError(f"data.{option}={value}: must be at least {least}, and finite")
        for option, value in (("cache_gb", cache_gb), ("timeout", timeout)):
            if not 0 < value < math.inf:
                raise InputError(f"data.{option}={value}: must be greater than 0, and finite")
        self.urls, self.val_urls, self.shuffle_shards = urls, val_urls, shuffle_shards
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else cache_folder("shards")
        self.cache_gb, self.retry = cache_gb, RetryPolicy(retries, timeout, backoff)

    def train(self) -> "ShardImages":
        return self.split(self.urls, "data.urls", None)

    def val(self, classes: list[str] | None = None) -> "ShardImages":
        return self.split(self.val_urls, "data.val_urls", classes)

    def split(self, urls: str | list[str] | None, option: str, classes: list[str] | None) -> "ShardImages":
        """Find the shards of one split. `option` is the configuration key of the urls, for error messages."""
        if not urls:
            raise InputError(
                f"{option}: must be given: a folder of shards, or shards, as {option}=/path/{{000..146}}.tar"
            )
        addresses = [complete(url, option) for url in ([urls] if isinstance(urls, str) else urls)]
        names, shards = locate(addresses, option, self.read_index)
        require_local(shards)
        folder = shards[0].address.rpartition("/")[0]
        new_labels = class_indices(classes, names, Path(folder.rpartition("://")[2]))
        cache = self.make_cache([located.shard.bytes for located in shards if located.is_remote])
        return ShardImages(shards, np.array(new_labels), classes or names, cache, self.shuffle_shards)

    def read_index(self, folder: str) -> Index:
        """Read the index of a folder.

        Raises:
            InputError: The folder has no index, or it cannot be read.
        """
        address = join(folder, INDEX)
        try:
            text = read_remote(address, self.retry) if is_remote(address) else Path(address).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(
                f"{address}: no such file; shards need an index.json beside them; create it with "
                "`python scripts/make_shards.py --index-only FOLDER`"
            ) from None
        except OSError as error:
            raise InputError(f"{address}: cannot be read ({error.strerror})") from None
        return parse_index(text, address)

    def make_cache(self, sizes: list[int]) -> Cache | None:
        """Make the cache for remote shards of these sizes in bytes. Return None if there are no remote shards.

        Raises:
            InputError: The shards that are in use at the same time do not fit into the cache.
        """
        if not sizes:
            return None
        limit = round(self.cache_gb * GB)
        needed = sum(sorted(sizes)[-2 * self.shuffle_shards :])
        if limit < needed:
            raise InputError(
                f"data.cache_gb={self.cache_gb:g}: must be at least {needed / GB:.3g} for data.shuffle_shards="
                f"{self.shuffle_shards}: the shards in use and the next ones"
            )
        return Cache(self.cache_dir, limit, self.retry)


class ShardImages(Examples):
    """The images of shards, in the order of the shards. Random access works, but access in order is fastest.

    Each process keeps recently used shards open and remembers the positions of their samples, and one of its threads
    fetches the next shards (see `Reader`). It begins with the first image, since an open file or a running thread must
    not be carried over a fork.
    """

    def __init__(
        self,
        shards: list[LocatedShard],
        new_labels: np.ndarray,
        classes: list[str],
        cache: Cache | None,
        shuffle_shards: int,
    ) -> None:
        """
        Args:
            shards: The shards.
            new_labels: The index in `classes` of each class of the shards' index.
            classes: The names of the classes.
            cache: The cache for remote shards.
            shuffle_shards: The number of shards whose images are shuffled together.
        """
        self.shards, self.new_labels, self.classes = shards, new_labels, classes
        self.cache, self.shuffle_shards = cache, shuffle_shards
        self.decoded_before = all(located.decoded for located in shards)
        self.ends = np.cumsum([located.shard.samples for located in shards])
        # The order of the shards in the current epoch. It is in shared memory, because the main process calls
        # `shuffled` and the workers must know which shards come next.
        with shared_memory_errors():
            self.shard_order = torch.arange(len(shards)).share_memory_()
        self.reader: Reader | None = None

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self.ends, index, side="right"))
        # Make a reader if there is none or if it was made before a fork.
        if self.reader is None or self.reader.process != os.getpid():
            order = self.shard_order.numpy()
            self.reader = Reader(self.shards, self.cache, len(self.new_labels), order, self.shuffle_shards)
        first = int(self.ends[number]) - self.shards[number].shard.samples
        image, label = self.reader.read(number, index - first)
        return Example(image, int(self.new_labels[label]), image.origin)

    def shuffled(self, random: np.random.Generator) -> np.ndarray:
        """Return all indices: the shards in random order, and the samples of each window of shards shuffled."""
        order = random.permutation(len(self.shards))
        self.shard_order.copy_(torch.from_numpy(order))
        windows = np.split(order, range(self.shuffle_shards, len(order), self.shuffle_shards))
        return np.concatenate([random.permutation(np.concatenate([*map(self.indices, w)])) for w in windows])

    @property
    def order(self) -> dict[str, object]:
        return {"data.shuffle_shards": self.shuffle_shards, "the number of shards": len(self.shards)}

    def indices(self, number: int) -> np.ndarray:
        """Return the indices of a shard's samples."""
        return np.arange(self.ends[number] - self.shards[number].shard.samples, self.ends[number])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"reader": None}


def complete(url: str, option: str) -> str:
    """Return an address that can be used, if it was saved without its credentials. `option` is its configuration key.

    Raises:
        InputError: ~/.netrc does not have the credentials.
    """
    restored = restore_credentials(url)
    if restored is None:
        raise InputError(
            f"{option}={url}: was saved without its password; give the whole address again by {option}=…, "
            "or put user and password into ~/.netrc"
        )
    return restored


def require_local(shards: list[LocatedShard]) -> None:
    """Raise an InputError if a local shard is missing or has another size than in its index.

    A `ShardError` is raised by one process only. Here every process finds the same, so it becomes an InputError.
    """
    for located in shards:
        if not located.is_remote:
            try:
                with open_local(located.address) as file:
                    require_size(file, located)
            except ShardError as error:
                raise InputError(str(error)) from None
