"""The cache of remote shards keeps its size limit, is shared by processes, and reports disk errors."""

import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data.shards.cache import Cache, Prefetcher
from data.shards.fetching import RetryPolicy
from data.shards.index import ShardError
from xcit.errors import InputError

from .servers import Faults, serving
from .sharded import RETRY, SIZE, located, record_requests


def kept(tmp_path: Path) -> set[str]:
    """Return the numbers of the shards in the cache. The first byte of a shard is its number."""
    return {str(path.read_bytes()[0]) for path in (tmp_path / "cache").glob("*.tar")}


def test_the_least_recently_used_make_room(folder: Path, cache_of: Callable[..., Cache], tmp_path: Path) -> None:
    faults = Faults()
    with serving(folder, faults) as base:
        cache = cache_of(limit=3 * SIZE)
        for number in (0, 1, 2, 0, 3, 4):
            cache.open(located(base, number)).close()
            assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.*")) <= 3 * SIZE
        assert kept(tmp_path) == {"0", "3", "4"}
        assert faults.requests["/0.tar"] == 1


def test_an_open_shard_stays_readable_when_it_had_to_make_room(folder: Path, cache_of: Callable[..., Cache]) -> None:
    with serving(folder) as base:
        cache = cache_of(limit=SIZE)
        with cache.open(located(base, 0)) as first:
            cache.open(located(base, 1)).close()
            assert first.read() == bytes([0]) * SIZE


@pytest.mark.parametrize("damage", [bytes([9]) * SIZE, b"short", b""])
def test_a_damaged_file_in_the_cache_is_noticed_by_the_next_run(
    folder: Path, cache_of: Callable[..., Cache], damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = Faults()
    with serving(folder, faults) as base:
        shard = located(base, 5)
        cache_of().open(shard).close()
        path = cache_of().path(shard.shard)
        was = path.stat()
        path.write_bytes(damage)
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
        with cache_of().open(shard) as file:
            assert file.read() == bytes([5]) * SIZE
    assert faults.requests["/5.tar"] == 2
    assert f"note: {path}: damaged (" in capsys.readouterr().err


def test_a_whole_file_in_the_cache_is_not_fetched_again(folder: Path, cache_of: Callable[..., Cache]) -> None:
    faults = Faults()
    with serving(folder, faults) as base:
        for _ in range(3):
            cache_of().open(located(base, 5)).close()
    assert faults.requests["/5.tar"] == 1


def test_what_a_killed_process_left_goes(folder: Path, cache_of: Callable[..., Cache], tmp_path: Path) -> None:
    with serving(folder) as base:
        cache = cache_of(limit=2 * SIZE)
        orphan = cache.path(located(base, 3).shard, f".{SIZE}.part")
        orphan.write_bytes(b"some")
        own = cache.path(located(base, 1).shard, f".{SIZE}.part")
        own.write_bytes(b"more")
        for number in (0, 1):
            cache.open(located(base, number)).close()
    assert not orphan.exists()
    assert not own.exists()
    assert kept(tmp_path) == {"0", "1"}


def test_files_of_others_in_the_folder_are_left_alone(
    folder: Path, cache_of: Callable[..., Cache], tmp_path: Path
) -> None:
    names = ("mine.tar", "films.part", f"{'a' * 64}.part", f"{'a' * 64}.copy.tar", f"{'A' * 64}.tar")
    (tmp_path / "cache").mkdir()
    for name in names:
        (tmp_path / "cache" / name).write_bytes(bytes([7]) * SIZE)
    with serving(folder) as base:
        cache = cache_of(limit=2 * SIZE)
        for number in range(4):
            cache.open(located(base, number)).close()
    assert {path.name for path in (tmp_path / "cache").iterdir() if path.is_file()} == {
        *names,
        *(f"{located('', number).shard.sha256}.tar" for number in (2, 3)),
    }


def read_all(cache: Cache, base: str) -> None:
    for number in range(6):
        with cache.open(located(base, number)) as file:
            assert file.read() == bytes([number]) * SIZE


@pytest.mark.parametrize("room", [6, 2])
def test_several_processes_share_what_one_of_them_fetches(
    folder: Path, cache_of: Callable[..., Cache], tmp_path: Path, room: int
) -> None:
    faults = Faults()
    with serving(folder, faults) as base:
        cache = cache_of(limit=room * SIZE)
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=read_all, args=(cache, base)) for _ in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(30)
        assert [process.exitcode for process in processes] == [0] * 4
    if room == 6:
        assert set(faults.requests.values()) == {1}
    assert len(kept(tmp_path)) <= room


def fail_to_open(cache: Cache, base: str, lines: "multiprocessing.SimpleQueue[str]") -> None:
    try:
        cache.open(located(base, 1))
    except ShardError as error:
        lines.put(str(error))


def test_who_waited_for_a_process_that_failed_does_not_try_all_over_again(
    folder: Path, cache_of: Callable[..., Cache]
) -> None:
    faults = Faults("503", times=99)
    with serving(folder, faults) as base:
        cache = cache_of(retry=RetryPolicy(retries=2, timeout=20, backoff=0.3))
        context = multiprocessing.get_context("fork")
        lines = context.SimpleQueue()
        processes = [context.Process(target=fail_to_open, args=(cache, base, lines)) for _ in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(30)
        assert len({lines.get() for _ in processes}) == 1
        assert faults.requests["/1.tar"] == 3
        faults.times = 0
        cache.open(located(base, 1)).close()


def test_a_thread_fetches_ahead_and_leaves_failures_to_the_reader(
    folder: Path, cache_of: Callable[..., Cache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = record_requests(monkeypatch)
    faults = Faults("403", times=99, suffix="1.tar")
    with serving(folder, faults) as base:
        cache = cache_of()
        Prefetcher(cache).fetch([located(base, 1), located("/of/this/disk", 2), located(base, 3)])
        assert [finished.get(timeout=30) for _ in range(2)] == [f"{base}/1.tar", f"{base}/3.tar"]
        assert kept(tmp_path) == {"3"}
        assert faults.requests == {"/1.tar": 1, "/3.tar": 1}
        with pytest.raises(ShardError, match="HTTP 403"):
            cache.open(located(base, 1))


def test_what_the_folder_refuses_is_one_line(
    folder: Path, cache_of: Callable[..., Cache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(folder) as base:
        cache = cache_of()
        in_the_way = cache.path(located(base, 1).shard)
        in_the_way.mkdir()
        cache.open(located(base, 2)).close()
        with pytest.raises(
            ShardError, match=f"^{in_the_way}: cannot be read or written .*; data.cache_dir=.*/cache must allow"
        ):
            cache.open(located(base, 1))
        with monkeypatch.context() as patched:
            patched.setattr("data.shards.cache.os.utime", refuse)
            with pytest.raises(ShardError, match=r"\.tar: cannot be read or written \(Operation not permitted\); "):
                cache.open(located(base, 2))
        shutil.rmtree(tmp_path / "cache" / "locks")
        (tmp_path / "cache" / "locks").write_text("")
        with pytest.raises(ShardError, match=f"^{tmp_path}/cache/locks.*: cannot be read or written"):
            cache.open(located(base, 3))


def refuse(path: Path, **_: object) -> None:
    raise PermissionError(1, "Operation not permitted", str(path))


def test_a_failure_that_cannot_be_noted_is_told_all_the_same(folder: Path, cache_of: Callable[..., Cache]) -> None:
    cache = cache_of()
    with serving(folder, Faults("403", times=99)) as base:
        note = cache.failure(located(base, 1).shard)
        note.mkdir()
        os.utime(note, (0, 0))
        with pytest.raises(ShardError, match=r"/1\.tar: cannot be fetched \(HTTP 403"):
            cache.open(located(base, 1))


def test_the_thread_outlives_what_the_folder_refuses(
    folder: Path, cache_of: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = record_requests(monkeypatch)
    with serving(folder) as base:
        cache = cache_of()
        cache.path(located(base, 1).shard).mkdir()
        prefetcher = Prefetcher(cache)
        prefetcher.fetch([located(base, 1), located(base, 3)])
        assert [finished.get(timeout=30) for _ in range(2)] == [f"{base}/1.tar", f"{base}/3.tar"]
        assert cache.path(located(base, 3).shard).exists()
        assert prefetcher.thread and prefetcher.thread.is_alive()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^data\.cache_dir=.*/file/cache: cannot be written \("):
        Cache(tmp_path / "file" / "cache", SIZE, RETRY)
