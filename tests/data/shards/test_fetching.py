"""Fetching from servers that fail, for a while or for good. The servers run on this machine."""

import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from botocore.exceptions import NoCredentialsError

from data.shards.cache import Cache
from data.shards.fetching import RetryPolicy, fetch
from data.shards.index import ShardError
from xcit.errors import InputError

from .servers import Faults, serving
from .sharded import RETRY, SIZE, located


@pytest.mark.parametrize("fault", ["dropped", "shorter", "flipped", "silent", "503", "500", "429", "408"])
def test_what_fails_for_a_while_is_fetched_in_the_end(
    folder: Path, cache_of: Callable[..., Cache], tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = Faults(fault, times=1 if fault == "silent" else 3)
    retry = RetryPolicy(3, timeout=0.2, backoff=0.001) if fault == "silent" else RETRY
    with serving(folder, faults) as base, cache_of(retry=retry).open(located(base, 4)) as file:
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
        with pytest.raises(ShardError, match=r"2\.tar: no such file, but the index beside it lists it"):
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
    with pytest.raises(InputError, match=f"^{url}: .*{missing}.*; install this project's extra: shards$"):
        fetch(url, tmp_path / "a.tar", RETRY, lambda path: None)


def test_an_address_that_cannot_be_read_is_tried_once(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"^http://host:port/a\.tar: cannot be fetched \(.*; tried 1 time\)$"):
        fetch("http://host:port/a.tar", tmp_path / "a.tar", RETRY, lambda path: None)


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
            # Use an empty cache. Otherwise fsspec would give the next test this endpoint.
            monkeypatch.setattr("s3fs.S3FileSystem._cache", {})
            url = "s3://shards/1.tar"
        with pytest.raises(ShardError, match=rf"^{url}: cannot be fetched \(.*; tried 1 time\)$"):
            fetch(url, tmp_path / "a.tar", RETRY, lambda path: None)


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

    monkeypatch.setattr("data.shards.fetching.download", fail)
    with pytest.raises(ShardError, match=f"; tried {tries} time"):
        fetch("s3://bucket/a.tar", tmp_path / "a.tar", RETRY, lambda path: None)


def test_the_pauses_double(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("data.shards.fetching.time.sleep", pauses.append)
    with pytest.raises(ShardError):
        fetch("http://127.0.0.1:9/x.tar", tmp_path / "x", RetryPolicy(9, 0.5, 0.5), lambda path: None)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Run an S3 server with a bucket named shards. Yield its endpoint."""
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
    with pytest.raises(ShardError, match=r"^s3://shards/train/3\.tar: no such file, but"):
        cache_of().open(located("s3://shards/train", 3))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    import fsspec

    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(ShardError, match=r"^s3://shards/train/4\.tar: cannot be fetched \(.*; tried 4 times\)$"):
        cache_of().open(located("s3://shards/train", 4))
