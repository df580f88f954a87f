"""From an address to a file on this disk, whole or not at all; and a store of such files that stays within bounds."""

import errno
import hashlib
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from .errors import DataError
from .shard_index import Located, Shard, ShardError, is_remote

LONGEST_PAUSE = 60.0
DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


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
            time.sleep(pause)
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
    except (ImportError, ValueError) as error:  # ValueError: a protocol that fsspec does not know
        raise DataError(
            f"{url}: {in_a_line(error)}; for http, https and s3 install this project's extra: shards"
        ) from None
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
    """Whether another try would end the same: what is asked for is refused, or this disk takes no more."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in (408, 425, 429)
    return isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno in DISK_TROUBLE)


def in_a_line(error: Exception) -> str:
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"HTTP {status} {getattr(error, 'message', '')}".rstrip()
    return " ".join(str(error).split()) or type(error).__name__


def tell(line: str) -> None:
    print(f"note: {line}", file=sys.stderr, flush=True)


def fault_of(path: Path, shard: Shard) -> str | None:
    """How a file differs from the shard that it should be."""
    size = path.stat().st_size
    if size != shard.bytes:
        return f"{size:,} bytes where the index has {shard.bytes:,}"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return None if found == shard.sha256 else f"its SHA-256 is {found[:12]}…, in the index {shard.sha256[:12]}…"


class Cache:
    """Remote shards on this disk, for all processes that name the same folder: the least recently used make room.

    A file is named by the SHA-256 of what it holds. Its time of access is when it was last opened; its time of
    modification is when it was last found to be whole, which is checked once in a run. What is being fetched lies in
    SHA256.BYTES.part, and its bytes count as taken. A process holds the lock of the shard that it fetches or checks,
    and for moments the lock of the folder, to make room.
    """

    def __init__(self, folder: Path, limit: int, patience: Patience) -> None:
        """limit: bytes.

        Raises:
            DataError: the folder cannot be made or written.
        """
        self.folder, self.limit, self.patience = folder, limit, patience
        self.opened = time.time_ns()
        try:
            (folder / "locks").mkdir(parents=True, exist_ok=True)
            with self.lock("folder"):
                pass
        except OSError as error:
            raise DataError(f"data.cache_dir={folder}: cannot be written ({error.strerror or error})") from None

    def open(self, located: Located) -> IO[bytes]:
        """The shard, fetched if it is not here.

        Raises:
            DataError: it cannot be fetched.
        """
        while True:
            self.require(located)
            try:
                file = self.path(located.shard).open("rb", buffering=0)
            except FileNotFoundError:  # another process has just made room
                continue
            touch(self.path(located.shard))
            return file

    def require(self, located: Located, *, wait: bool = True) -> None:
        """See to it that the shard is here and whole; without `wait`, leave it if others are at it or room is short."""
        address, shard = located
        if self.is_checked(shard):
            return
        try:
            with self.lock(shard.sha256).acquire(timeout=-1 if wait else 0):
                if self.is_checked(shard) or self.is_whole(shard):
                    return
                part = self.path(shard, f".{shard.bytes}.part")
                while not self.make_room(shard, part):
                    if not wait:
                        return
                    time.sleep(0.05)
                try:
                    fetch(address, part, self.patience, lambda path: fault_of(path, shard))
                    touch(part, checked=True)
                    part.replace(self.path(shard))
                except FileNotFoundError:
                    raise ShardError(f"{address}: no such file, though the index beside it has it") from None
                finally:
                    part.unlink(missing_ok=True)
        except Timeout:
            return

    def path(self, shard: Shard, suffix: str = ".tar") -> Path:
        return self.folder / f"{shard.sha256}{suffix}"

    def lock(self, name: str) -> FileLock:
        return FileLock(self.folder / "locks" / f"{name}.lock")

    def is_checked(self, shard: Shard) -> bool:
        """Whether the file is here, and was found whole since this cache was opened."""
        try:
            status = self.path(shard).stat()
        except FileNotFoundError:
            return False
        return status.st_size == shard.bytes and status.st_mtime_ns >= self.opened

    def is_whole(self, shard: Shard) -> bool:
        """Whether the file is here and whole; one that is not goes."""
        path = self.path(shard)
        try:
            fault = fault_of(path, shard)
            if not fault:
                touch(path, checked=True)
                return True
        except FileNotFoundError:
            return False
        tell(f"{path}: damaged ({fault}); fetching {shard.name} anew")
        path.unlink(missing_ok=True)
        return False

    def make_room(self, shard: Shard, part: Path) -> bool:
        """Remove what was not used for longest until the shard fits, and take its place; False if it does not fit."""
        with self.lock("folder"):
            files = []
            taken = shard.bytes
            for path in self.folder.iterdir():
                if path.suffix == ".part" and not self.is_orphan(path, part):
                    taken += int(path.suffixes[0][1:])
                elif path.suffix == ".tar":
                    try:
                        status = path.stat()
                    except FileNotFoundError:  # another process has just found it damaged
                        continue
                    files.append((status.st_atime_ns, status.st_size, path))
                    taken += status.st_size
            for _, size, path in sorted(files):
                if taken <= self.limit:
                    break
                path.unlink(missing_ok=True)
                taken -= size
            if taken > self.limit:
                return False
            part.touch()
            return True

    def is_orphan(self, path: Path, own: Path) -> bool:
        """Whether a part is of a process that was killed (or of this shard itself): then it goes."""
        if path == own:
            return True
        try:
            with self.lock(path.name.split(".")[0]).acquire(timeout=0):
                path.unlink(missing_ok=True)
                return True
        except Timeout:
            return False


def touch(path: Path, *, checked: bool = False) -> None:
    """Mark a file as used now, and as found whole now."""
    now = time.time_ns()
    try:
        os.utime(path, ns=(now, now if checked else path.stat().st_mtime_ns))
    except FileNotFoundError:  # another process has just made room
        return


class Ahead:
    """A thread that fetches what will be asked for next. It begins when first asked, in the process that asks."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.wanted: queue.SimpleQueue[list[Located]] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None

    def fetch(self, shards: Iterable[Located]) -> None:
        """Fetch these next, in place of what was asked for before. Returns at once; failures are left to the reader."""
        self.wanted.put([located for located in shards if is_remote(located.address)])
        if self.thread is None:
            self.thread = threading.Thread(target=self.run, name="shards ahead", daemon=True)  # so it holds up no exit
            self.thread.start()

    def run(self) -> None:
        while True:
            for located in self.wanted.get():
                if not self.wanted.empty():
                    break
                try:
                    self.cache.require(located, wait=False)
                except DataError:
                    continue
