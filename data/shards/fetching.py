"""From an address to a file on this disk, with patience for servers that fail for a while."""

import errno
import ssl
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, tell
from .index import ShardError

LONGEST_PAUSE = 60.0
DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
CUT_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""Errors of TLS that mean no more than that the connection ended."""
KEYS_TROUBLE = frozenset(("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"))
"""Names of botocore's errors, which may not be installed: it finds no keys for S3."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to bear with a server: tries after the first, seconds without a byte, seconds before the second try.

    Each later pause is twice as long, up to a minute.
    """

    retries: int = 5
    timeout: float = 60.0
    backoff: float = 1.0


def fetch(url: str, target: Path, patience: Patience, fault: Callable[[Path], str | None]) -> None:
    """Fetch into a file, again and again until it is right. `fault` says what is wrong with what was fetched.

    Raises:
        FileNotFoundError: the server has no such file.
        ShardError: the last try failed, too, or another would not help.
    """
    reason, tried = "", 0
    while tried <= patience.retries:
        if tried:
            pause = min(patience.backoff * 2 ** (tried - 1), LONGEST_PAUSE)
            tell(f"{url}: {reason}; trying again in {pause:.3g} s ({tried + 1} of {patience.retries + 1})")
            time.sleep(pause)  # a server that is overrun wants to be left alone
        tried += 1
        try:
            download(url, target, patience.timeout)
            wrong = fault(target)
            if not wrong:
                return
            reason = wrong
        except (FileNotFoundError, DataError):
            raise
        except Exception as error:  # every file system of fsspec's has exceptions of its own
            reason = f"no byte for {patience.timeout:g} s" if isinstance(error, TimeoutError) else in_a_line(error)
            if is_final(error):
                break
    raise ShardError(f"{url}: cannot be fetched ({reason}; tried {tried} {'time' if tried == 1 else 'times'})")


def read_remote(url: str, patience: Patience) -> bytes:
    """A small file, whole.

    Raises:
        FileNotFoundError: the server has no such file.
        ShardError: it cannot be fetched.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "file"
        fetch(url, target, patience, lambda path: None)
        return target.read_bytes()


def download(url: str, target: Path, timeout: float) -> None:
    """One try, by fsspec; whatever it raises."""
    protocol = url.partition("://")[0]
    try:
        import fsspec

        filesystem = fsspec.filesystem(protocol, **options_for(protocol, timeout))
    except ImportError as error:
        raise DataError(f"{url}: {in_a_line(error)}; install this project's extra: shards") from None
    if protocol == "s3":
        filesystem.retries = 1  # the tries are counted here
    filesystem.get_file(url, str(target))


def options_for(protocol: str, timeout: float) -> dict[str, Any]:
    if protocol in ("http", "https"):
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
        return {"client_kwargs": {"timeout": limits, "trust_env": True}}
    if protocol == "s3":
        limited = {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"max_attempts": 0}}
        return {"config_kwargs": limited}
    return {}


def is_final(error: Exception) -> bool:
    """Whether another try would end the same: what is asked for makes no sense or is refused, or the disk is full."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in (408, 425, 429)
    causes = (error, error.__context__)  # for TLS: botocore has an error of its own, raised from that of ssl
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return not any(isinstance(cause, CUT_OFF) for cause in causes)
    if isinstance(error, ValueError | PermissionError) or type(error).__name__ in KEYS_TROUBLE:
        return True
    return isinstance(error, OSError) and error.errno in DISK_TROUBLE


def in_a_line(error: Exception) -> str:
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"HTTP {status} {getattr(error, 'message', '')}".rstrip()
    return " ".join(str(error).split()) or type(error).__name__
