"""Remote shards on this disk: a store that several processes share, and that stays within bounds."""

import hashlib
import os
import queue
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from ..errors import DataError, tell
from .fetching import Patience, fetch
from .index import Located, Shard, ShardError, is_remote

NAME = re.compile(r"[0-9a-f]{64}\.(?:tar|(?P<size>\d+)\.part)")
"""The cache's own files: what else lies in its folder is the user's, and is neither counted nor removed."""


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
            DataError: it cannot be fetched, or the folder cannot be used.
        """
        while True:
            self.require(located)
            with disk_errors(self.folder):
                try:
                    file = self.path(located.shard).open("rb", buffering=0)
                except FileNotFoundError:  # another process has just made room
                    continue
                touch(self.path(located.shard))
                return file

    def require(self, located: Located, *, wait: bool = True) -> None:
        """See to it that the shard is here and whole; without `wait`, leave it if others are at it or room is short.

        Raises:
            DataError: it cannot be fetched, or the folder cannot be used.
        """
        with disk_errors(self.folder):
            self.provide(located, wait=wait)

    def provide(self, located: Located, *, wait: bool) -> None:
        """`require`, but for an OSError of the folder's own."""
        address, shard = located
        if self.is_checked(shard):
            return
        patience = self.patience if wait else replace(self.patience, retries=0)
        asked = time.time_ns()
        try:
            with self.lock(shard.sha256).acquire(timeout=-1 if wait else 0):
                if self.is_checked(shard) or self.is_whole(shard):
                    return
                self.require_no_failure(shard, asked)
                part = self.path(shard, f".{shard.bytes}.part")
                while not self.make_room(shard, part):
                    if not wait:
                        return
                    time.sleep(0.05)  # other processes make room, and none of them tells
                try:
                    fetch_listed(address, part, patience, shard)
                    touch(part, checked=True)
                    part.replace(self.path(shard))
                except ShardError as error:
                    if wait:
                        with suppress(OSError):
                            self.failure(shard).write_text(str(error))
                    raise
                finally:
                    with suppress(OSError):  # the next process that makes room tries again
                        part.unlink(missing_ok=True)
        except Timeout:
            return

    def path(self, shard: Shard, suffix: str = ".tar") -> Path:
        return self.folder / f"{shard.sha256}{suffix}"

    def failure(self, shard: Shard) -> Path:
        """The file that tells those who wait for the same shard how the last process failed."""
        return self.folder / "locks" / f"{shard.sha256}.failed"

    def require_no_failure(self, shard: Shard, asked: int) -> None:
        """Give up if another process failed while this one waited for it: else all would, one after the other."""
        path = self.failure(shard)
        if path.exists() and path.stat().st_mtime_ns >= asked:
            raise ShardError(path.read_text())

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
                named = NAME.fullmatch(path.name)
                if not named:
                    continue
                if named["size"]:
                    taken += 0 if self.is_orphan(path, part) else int(named["size"])
                else:
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


def fetch_listed(address: str, target: Path, patience: Patience, shard: Shard) -> None:
    """Fetch a shard that the index has.

    Raises:
        ShardError: it cannot be fetched.
    """
    try:
        fetch(address, target, patience, lambda path: fault_of(path, shard))
    except FileNotFoundError:
        raise ShardError(f"{address}: no such file, though the index beside it has it") from None


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """What this disk refuses, as one line that names the file."""
    try:
        yield
    except OSError as error:
        path = error.filename or folder
        reason = error.strerror or error
        raise ShardError(
            f"{path}: cannot be read or written ({reason}); data.cache_dir={folder} must allow both"
        ) from None


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
