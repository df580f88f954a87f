"""Fixtures: a small tree of images, the same images in shards, and files that a server can offer as shards."""

import gc
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data.shards.cache import Cache
from data.workers import end_workers

from .shards.sharded import COUNTS, RETRY, SIZE, Command


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect to the tests' own servers directly, even on a machine that uses a proxy."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def tree(image_tree: Callable[..., Path]) -> Path:
    return image_tree("tree", COUNTS)


@pytest.fixture
def shards(command: Command, tree: Path, tmp_path: Path) -> Path:
    """Write the tree as shards of 5 images: ten shards for training and three for validation."""
    result = command("scripts/make_shards.py", str(tree), str(tmp_path / "shards"), "--samples", "5", "--workers", "1")
    assert result.status == 0, result.stderr
    return tmp_path / "shards"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write six files of SIZE bytes. Tests of fetching and caching use them as shards."""
    (tmp_path / "served").mkdir()
    for number in range(6):
        (tmp_path / "served" / f"{number}.tar").write_bytes(bytes([number]) * SIZE)
    return tmp_path / "served"


@pytest.fixture
def cache_of(tmp_path: Path) -> Callable[..., Cache]:
    return lambda limit=10 * SIZE, retry=RETRY: Cache(tmp_path / "cache", limit, retry)


@pytest.fixture
def no_worker_stays() -> Iterator[None]:
    """End the workers of each test. The traceback of an error may keep a loader alive beyond the test."""
    yield
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    end_workers()
    gc.collect()
    signal.signal(signal.SIGCHLD, before)
