"""Helpers for the tests of shards: options of small runs, and the contents of a data set."""

import hashlib
from collections import Counter
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from data.datasets.image_files import ImageFiles
from data.datasets.imagenet_shards import ImageNetShards, ShardImages
from data.examples import Example, View
from data.loader import batches_of, make_loader
from data.shards.cache import Cache
from data.shards.fetching import RetryPolicy
from data.shards.index import LocatedShard, Shard
from data.viewed_examples import ViewedExamples

from ...conftest import TINY, Result

Command = Callable[..., Result]
QUICK: dict[str, Any] = {"timeout": 20.0, "backoff": 0.001}
SMALL = (
    *TINY,
    "+model.depth=1",
    "data=imagenet_shards",
    "data.shuffle_shards=2",
    "train.global_batch_size=16",
    "train.ema_decay=null",
    "resolutions=[16]",
)
RETRY = RetryPolicy(retries=3, timeout=20, backoff=0.001)
SIZE = 5_000
"""The size in bytes of a file that stands for a shard."""
COUNTS = {"train/green": 26, "train/red": 20, "val/green": 3, "val/red": 8}


def located(base: str, number: int) -> LocatedShard:
    """Return the index entry of a file of the fixture `folder`, served at `base`."""
    content = bytes([number]) * SIZE
    return LocatedShard(f"{base}/{number}.tar", Shard(f"{number}.tar", 1, SIZE, hashlib.sha256(content).hexdigest()))


def source(base: object, **options: Any) -> ImageNetShards:
    return ImageNetShards(urls=f"{base}/train", val_urls=f"{base}/val", **QUICK | options)


def contents(images: ShardImages | ImageFiles) -> Counter[tuple[bytes, int]]:
    """Count the (image bytes, label) of a data set."""
    return Counter((example.image.data, example.target) for example in map(images.__getitem__, range(len(images))))


def seen(images: ShardImages, shares: list[Any], workers: int) -> Counter[tuple[bytes, int]]:
    """Count the (image bytes, label) that all processes of a run load in an epoch."""

    class AsItIs(View):
        def sample(self, example: Example) -> tuple[torch.Tensor, int]:
            return torch.frombuffer(bytearray(example.image.data.ljust(8000, b"\0")), dtype=torch.uint8), example.target

        def collate(self, samples: Any) -> tuple[torch.Tensor, list[int]]:
            return torch.stack([content for content, _ in samples]), [label for _, label in samples]

    found: Counter[tuple[bytes, int]] = Counter()
    viewed = ViewedExamples(images, AsItIs(), replace=False)
    for batches in shares:
        loader = make_loader(viewed, batches, workers, torch.device("cpu"), keep_workers=False)
        for batch in batches_of(loader):
            found.update((bytes(p.numpy()).rstrip(b"\0"), int(label)) for p, label in zip(*batch.samples, strict=True))
    return found


def record_requests(monkeypatch: pytest.MonkeyPatch) -> "SimpleQueue[str]":
    """Return a queue. It receives the address of a shard whenever `Cache.require` returns or fails.

    A test can wait for the prefetching thread with `queue.get(timeout=…)`.
    """
    finished: SimpleQueue[str] = SimpleQueue()
    require = Cache.require

    def recorded(cache: Cache, shard: LocatedShard, **options: bool) -> None:
        try:
            require(cache, shard, **options)
        finally:
            finished.put(shard.address)

    monkeypatch.setattr(Cache, "require", recorded)
    return finished


def unpadded(counted: Counter[tuple[bytes, int]]) -> dict[tuple[bytes, int], int]:
    """Strip trailing zeros, which `seen` strips together with its padding."""
    return {(data.rstrip(b"\0"), label): count for (data, label), count in counted.items()}
