"""Downloads files from remote addresses, and tries again if a server fails for a while."""

import errno
import ssl
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xcit.errors import InputError, print_note

from .index import ShardError

MAX_PAUSE = 60.0
"""The longest pause between two tries, in seconds."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Error numbers of a full or read-only disk."""
CONNECTION_ENDED = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""TLS errors that only mean that the connection ended. Another try may succeed."""
CREDENTIALS_ERRORS = frozenset(("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"))
"""Class names of botocore's errors for missing S3 credentials. botocore may not be installed, hence names."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to try again, and when to give up."""

    retries: int = 5
    """The number of tries after the first one."""
    timeout: float = 60.0
    """Seconds without a byte after which a try fails."""
    backoff: float = 1.0
    """Seconds before the second try. Each later pause is twice as long as the one before, up to a minute."""


def fetch(url: str, target: Path, retry: RetryPolicy, fault: Callable[[Path], str | None]) -> None:
    """Download into a file. Try again until it is right or the tries are used up.

    Args:
        url: The address.
        target: The file to write.
        retry: The number of tries and the pauses between them.
        fault: Checks the downloaded file. It returns what is wrong with it, or None.

    Raises:
        FileNotFoundError: The server has no such file.
        ShardError: The last try failed, or an error occurred that another try would not remove.
    """
    reason, tried = "", 0
    while tried <= retry.retries:
        # Wait before every try but the first.
        if tried:
            pause = min(retry.backoff * 2 ** (tried - 1), MAX_PAUSE)
            print_note(f"{url}: {reason}; trying again in {pause:.3g} s ({tried + 1} of {retry.retries + 1})")
            time.sleep(pause)  # gives a failing server time to recover
        tried += 1
        # Download and check the file.
        try:
            download(url, target, retry.timeout)
            wrong = fault(target)
            if not wrong:
                return
            reason = wrong
        except (FileNotFoundError, InputError):
            raise
        except Exception as error:  # each file system of fsspec raises its own exceptions
            reason = f"no byte for {retry.timeout:g} s" if isinstance(error, TimeoutError) else one_line(error)
            if is_permanent(error):
                break
    raise ShardError(f"{url}: cannot be fetched ({reason}; tried {tried} {'time' if tried == 1 else 'times'})")


def read_remote(url: str, retry: RetryPolicy) -> bytes:
    """Download a small file and return its content.

    Raises:
        FileNotFoundError: The server has no such file.
        ShardError: The file cannot be fetched.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "file"
        fetch(url, target, retry, lambda path: None)
        return target.read_bytes()


def download(url: str, target: Path, timeout: float) -> None:
    """Download with fsspec, in one try. Its exceptions are passed on.

    Raises:
        InputError: fsspec or its package for the protocol is not installed.
    """
    protocol = url.partition("://")[0]
    try:
        import fsspec

        filesystem = fsspec.filesystem(protocol, **options_for(protocol, timeout))
    except ImportError as error:
        raise InputError(f"{url}: {one_line(error)}; install this project's extra: shards") from None
    if protocol == "s3":
        filesystem.retries = 1  # `fetch` tries again, not s3fs
    filesystem.get_file(url, str(target))


def options_for(protocol: str, timeout: float) -> dict[str, Any]:
    """Return the keyword arguments of fsspec's file system that set the timeout in seconds and disable its retries."""
    if protocol in ("http", "https"):
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
        return {"client_kwargs": {"timeout": limits, "trust_env": True}}
    if protocol == "s3":
        limited = {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"max_attempts": 0}}
        return {"config_kwargs": limited}
    return {}


def is_permanent(error: Exception) -> bool:
    """Return whether another try would fail in the same way.

    This is so if the request is invalid or refused, if the server's certificate is invalid, if S3 credentials are
    missing, or if the disk is full or read-only.
    """
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in (408, 425, 429)
    causes = (error, error.__context__)  # botocore wraps the ssl module's errors in its own
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return not any(isinstance(cause, CONNECTION_ENDED) for cause in causes)
    if isinstance(error, ValueError | PermissionError) or type(error).__name__ in CREDENTIALS_ERRORS:
        return True
    return isinstance(error, OSError) and error.errno in DISK_ERRORS


def one_line(error: Exception) -> str:
    """Describe an error in one line, for a message."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        hint = "; user and password may be in ~/.netrc or in the address" if status == 401 else ""
        return f"HTTP {status} {getattr(error, 'message', '')}".rstrip() + hint
    return " ".join(str(error).split()) or type(error).__name__
