"""From servers that fail to files that are whole, within bounds; against real servers on this machine."""

import hashlib
import json
import multiprocessing
import os
import shutil
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from botocore.exceptions import NoCredentialsError

from data import DataError
from data.fetching import Patience, fetch
from data.shard_cache import Ahead, Cache
from data.shard_index import Located, Shard, ShardError

from .servers import Faults, serving

QUICK = Patience(retries=3, timeout=20, backoff=0.001)
SIZE = 5_000


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six files that pass for shards."""
    (tmp_path / "served").mkdir()
    for number in range(6):
        (tmp_path / "served" / f"{number}.tar").write_bytes(bytes([number]) * SIZE)
    return tmp_path / "served"


def located(base: str, number: int) -> Located:
    content = bytes([number]) * SIZE
    return Located(f"{base}/{number}.tar", Shard(f"{number}.tar", 1, SIZE, hashlib.sha256(content).hexdigest()))


@pytest.fixture
def cache_of(tmp_path: Path) -> Callable[..., Cache]:
    return lambda limit=10 * SIZE, patience=QUICK: Cache(tmp_path / "cache", limit, patience)


def kept(tmp_path: Path) -> set[str]:
    """The first byte of each file in the cache: the number of the shard."""
    return {str(path.read_bytes()[0]) for path in (tmp_path / "cache").glob("*.tar")}


@pytest.mark.parametrize("fault", ["dropped", "shorter", "flipped", "silent", "503", "500", "429", "408"])
def test_what_fails_for_a_while_is_fetched_in_the_end(
    folder: Path, cache_of: Callable[..., Cache], tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = Faults(fault, times=1 if fault == "silent" else 3)
    patience = Patience(3, timeout=0.2, backoff=0.001) if fault == "silent" else QUICK
    with serving(folder, faults) as base, cache_of(patience=patience).open(located(base, 4)) as file:
        assert file.read() == bytes([4]) * SIZE
    assert faults.requests["/4.tar"] == faults.times + 1
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == faults.times
    assert notes[0].startswith(f"note: {base}/4.tar: ")
    assert notes[0].endswith("; trying again in 0.001 s (2 of 4)")
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_file()] == [
        f"{located(base, 4).shard.sha256}.tar"
    ]


@pytest.mark.parametrize(
    ("fault", "tries", "reason"),
    [
        ("503", 4, "HTTP 503 Service Unavailable; tried 4 times"),
        ("shorter", 4, "2,500 bytes where the index has 5,000; tried 4 times"),
        ("flipped", 4, "its SHA-256 is "),
        ("dropped", 4, "payload"),
        ("403", 1, "HTTP 403 Forbidden; tried 1 time"),
    ],
)
def test_what_fails_for_good_is_one_line_and_leaves_nothing(
    folder: Path, cache_of: Callable[..., Cache], tmp_path: Path, fault: str, tries: int, reason: str
) -> None:
    faults = Faults(fault, times=99)
    with serving(folder, faults) as base, pytest.raises(ShardError) as caught:
        cache_of().open(located(base, 1))
    assert str(caught.value).startswith(f"{base}/1.tar: cannot be fetched (")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert faults.requests["/1.tar"] == tries
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_file()]


def test_a_server_that_is_not_there_and_a_file_that_is_not(folder: Path, cache_of: Callable[..., Cache]) -> None:
    with serving(folder) as base:
        (folder / "2.tar").unlink()
        with pytest.raises(ShardError, match=r"2\.tar: no such file, though the index beside it has it"):
            cache_of().open(located(base, 2))
    with pytest.raises(ShardError, match=r"cannot be fetched \(Cannot connect.*; tried 4 times\)"):
        cache_of().open(located(base, 3))


@pytest.mark.parametrize(("url", "missing"), [("s3://bucket/a.tar", "s3fs"), ("http://host/a.tar", "aiohttp")])
def test_a_package_that_is_missing_is_named_with_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str, missing: str
) -> None:
    for name in [missing, *(module for module in sys.modules if module.startswith(("s3fs", "fsspec")))]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(DataError, match=f"^{url}: .*{missing}.*; install this project's extra: shards$"):
        fetch(url, tmp_path / "a.tar", QUICK, lambda path: None)


def test_an_unknown_protocol_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^gopher://host/a\.tar: Protocol not known: gopher; must be a path, or"):
        fetch("gopher://host/a.tar", tmp_path / "a.tar", QUICK, lambda path: None)


def test_an_address_that_cannot_be_read_is_tried_once(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"^http://host:port/a\.tar: cannot be fetched \(.*; tried 1 time\)$"):
        fetch("http://host:port/a.tar", tmp_path / "a.tar", QUICK, lambda path: None)


@pytest.mark.parametrize("scheme", ["https", "s3"])
def test_tls_that_the_server_does_not_speak_is_tried_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    with serving(folder) as base:
        url = f"{base.replace('http', 'https')}/1.tar"
        if scheme == "s3":
            for name, value in (("ENDPOINT_URL", url), ("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test")):
                monkeypatch.setenv(f"AWS_{name}", value)
            monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            monkeypatch.setattr("s3fs.S3FileSystem._cache", {})  # fsspec would give the next test this one's endpoint
            url = "s3://shards/1.tar"
        with pytest.raises(ShardError, match=rf"^{url}: cannot be fetched \(.*; tried 1 time\)$"):
            fetch(url, tmp_path / "a.tar", QUICK, lambda path: None)


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (ssl.SSLCertVerificationError("certificate has expired"), 1),
        (ssl.SSLEOFError("EOF occurred in violation of protocol"), 4),
        (NoCredentialsError(), 1),
        (ConnectionResetError("reset"), 4),
    ],
)
def test_what_is_hopeless_is_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, tries: int
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("data.fetching.download", fail)
    with pytest.raises(ShardError, match=f"; tried {tries} time"):
        fetch("s3://bucket/a.tar", tmp_path / "a.tar", QUICK, lambda path: None)


def test_the_pauses_double(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("data.fetching.time.sleep", pauses.append)
    with pytest.raises(ShardError):
        fetch("http://127.0.0.1:9/x.tar", tmp_path / "x", Patience(9, 0.5, 0.5), lambda path: None)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


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
            patched.setattr("data.shard_cache.os.utime", refuse)
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
    with pytest.raises(DataError, match=r"^data\.cache_dir=.*/file/cache: cannot be written \("):
        Cache(tmp_path / "file" / "cache", SIZE, QUICK)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The endpoint of an S3 with a bucket named shards."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=endpoint, **keys)
    client.create_bucket(Bucket="shards")
    client.put_object(Bucket="shards", Key="train/2.tar", Body=bytes([2]) * SIZE)
    yield endpoint
    server.stop()


def test_shards_come_from_a_bucket(
    bucket: str, cache_of: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("ENDPOINT_URL", bucket), ("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with cache_of().open(located("s3://shards/train", 2)) as file:
        assert file.read() == bytes([2]) * SIZE
    with pytest.raises(ShardError, match=r"^s3://shards/train/3\.tar: no such file, though"):
        cache_of().open(located("s3://shards/train", 3))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    import fsspec

    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(ShardError, match=r"^s3://shards/train/4\.tar: cannot be fetched \(.*; tried 4 times\)$"):
        cache_of().open(located("s3://shards/train", 4))


def test_json_of_an_index_is_what_it_was() -> None:
    from data.shard_index import Index, parse_index

    index = Index(["a", "ü", os.fsdecode(b"caf\xe9")], [located("", 1).shard], {"seed": 3})
    assert parse_index(index.text().encode(), "x") == index
    for broken in ("{", "[]", '{"classes": []}', json.dumps({"classes": ["a"], "shards": []})):
        with pytest.raises(DataError, match=r"^x: not an index of shards"):
            parse_index(broken, "x")
    evil = index.text().replace("1.tar", "../1.tar")
    with pytest.raises(DataError, match=r"^x: not an index of shards"):
        parse_index(evil, "x")
