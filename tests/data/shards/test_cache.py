"""Shards from elsewhere are kept: within bounds, by several processes, whatever the disk does."""

import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from data.shards.cache import Ahead, Cache
from data.shards.fetching import Patience
from data.shards.index import ShardError
from xcit.errors import InputError

from .servers import Faults, serving
from .sharded import PATIENCE, SIZE, located


def kept(tmp_path: Path) -> set[str]:
    """The first byte of each file in the cache: the number of the shard."""
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
        cache = cache_of(patience=Patience(retries=2, timeout=20, backoff=0.3))
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
    folder: Path, cache_of: Callable[..., Cache], tmp_path: Path
) -> None:
    faults = Faults("403", times=99, suffix="1.tar")
    with serving(folder, faults) as base:
        cache = cache_of()
        ahead = Ahead(cache)
        ahead.fetch([located(base, 1), located("/of/this/disk", 2), located(base, 3)])
        for _ in range(1000):
            if kept(tmp_path) == {"3"}:
                break
            threading.Event().wait(0.005)
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
    folder: Path, cache_of: Callable[..., Cache], tmp_path: Path
) -> None:
    with serving(folder) as base:
        cache = cache_of()
        cache.path(located(base, 1).shard).mkdir()
        ahead = Ahead(cache)
        ahead.fetch([located(base, 1), located(base, 3)])
        for _ in range(400):
            if cache.path(located(base, 3).shard).exists():
                break
            threading.Event().wait(0.005)
        assert cache.path(located(base, 3).shard).exists()
        assert ahead.thread and ahead.thread.is_alive()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^data\.cache_dir=.*/file/cache: cannot be written \("):
        Cache(tmp_path / "file" / "cache", SIZE, PATIENCE)
