"""A cache of remote shards on a local disk, shared by several processes and limited in size."""

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

from xcit.errors import InputError, print_note

from .fetching import RetryPolicy, fetch
from .index import LocatedShard, Shard, ShardError, is_remote

CACHE_FILE = re.compile(r"[0-9a-f]{64}\.(?:tar|(?P<size>\d+)\.part)")
"""The names of the cache's files. Other files in its folder are the user's; they are neither counted nor removed."""


def find_fault(path: Path, shard: Shard) -> str | None:
    """Compare a file with the index. Return how its size or its SHA-256 differs, or None if the file is right."""
    size = path.stat().st_size
    if size != shard.bytes:
        return f"{size:,} bytes where the index has {shard.bytes:,}"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return None if found == shard.sha256 else f"its SHA-256 is {found[:12]}…, in the index {shard.sha256[:12]}…"


class Cache:
    """A cache of remote shards for all processes that use the same folder. It removes the least recently used shards.

    Files:
        SHA256.tar: A shard, named by the SHA-256 of its content. Its atime is when a process last opened it. Its mtime
            is when a process last verified it, which is done once per run.
        SHA256.BYTES.part: A shard that is being fetched. BYTES is its final size, which counts as used.
        locks/: The locks. A process holds the lock of a shard while it fetches or verifies it, and the lock of the
            folder for a moment while it makes room.

    Args:
        folder: The folder of the cache.
        limit: The largest total size of the shards in bytes.
        retry: When to try again if a shard cannot be fetched.

    Raises:
        InputError: The folder cannot be created or written.
    """

    def __init__(self, folder: Path, limit: int, retry: RetryPolicy) -> None:
        self.folder, self.limit, self.retry = folder, limit, retry
        self.opened = time.time_ns()
        try:
            (folder / "locks").mkdir(parents=True, exist_ok=True)
            with self.lock("folder"):
                pass
        except OSError as error:
            raise InputError(f"data.cache_dir={folder}: cannot be written ({error.strerror or error})") from None

    def open(self, located: LocatedShard) -> IO[bytes]:
        """Open a shard. Fetch it first if it is not in the cache.

        Raises:
            ShardError: The shard cannot be fetched, or the folder cannot be read or written.
        """
        while True:
            self.require(located)
            with disk_errors(self.folder):
                try:
                    file = self.path(located.shard).open("rb", buffering=0)
                except FileNotFoundError:  # another process has just removed it to make room
                    continue
                touch(self.path(located.shard))
                return file

    def require(self, located: LocatedShard, *, wait: bool = True) -> None:
        """Make sure that a shard is in the cache and verified.

        Args:
            located: The shard.
            wait: Whether to wait while another process fetches the shard, to wait for room, and to try again after a
                failure. With False the method returns without the shard instead.

        Raises:
            ShardError: The shard cannot be fetched, or the folder cannot be read or written.
        """
        with disk_errors(self.folder):
            self.provide(located, wait=wait)

    def provide(self, located: LocatedShard, *, wait: bool) -> None:
        """Implement `require`. This method may also raise an OSError of the cache's folder."""
        address, shard = located.address, located.shard
        if self.is_checked(shard):
            return
        retry = self.retry if wait else replace(self.retry, retries=0)
        requested = time.time_ns()
        # Take the lock of the shard. Meanwhile another process may have fetched it, or may have failed to.
        try:
            with self.lock(shard.sha256).acquire(timeout=-1 if wait else 0):
                if self.is_checked(shard) or self.is_whole(shard):
                    return
                self.raise_recent_failure(shard, requested)
                # Make room for the shard.
                part = self.path(shard, f".{shard.bytes}.part")
                while not self.make_room(shard, part):
                    if not wait:
                        return
                    time.sleep(0.05)  # other processes finish and release room, without a signal
                # Fetch it under a temporary name, then rename it.
                try:
                    fetch_listed(address, part, retry, shard)
                    touch(part, checked=True)
                    part.replace(self.path(shard))
                except ShardError as error:
                    # Tell the processes that wait for the lock.
                    if wait:
                        with suppress(OSError):
                            self.failure(shard).write_text(str(error))
                    raise
                finally:
                    with suppress(OSError):  # the next process that makes room removes it
                        part.unlink(missing_ok=True)
        except Timeout:  # another process has the lock, and `wait` is False
            return

    def path(self, shard: Shard, suffix: str = ".tar") -> Path:
        """Return the path of a shard's file."""
        return self.folder / f"{shard.sha256}{suffix}"

    def failure(self, shard: Shard) -> Path:
        """Return the path of the file that tells waiting processes why the last fetch of this shard failed."""
        return self.folder / "locks" / f"{shard.sha256}.failed"

    def raise_recent_failure(self, shard: Shard, requested: int) -> None:
        """Raise another process's ShardError if it failed after `requested` (ns), while this process waited for it.

        Otherwise all waiting processes would go through the same tries, one after another.
        """
        path = self.failure(shard)
        if path.exists() and path.stat().st_mtime_ns >= requested:
            raise ShardError(path.read_text())

    def lock(self, name: str) -> FileLock:
        """Return the lock of a shard, by its SHA-256, or of the folder, by "folder"."""
        return FileLock(self.folder / "locks" / f"{name}.lock")

    def is_checked(self, shard: Shard) -> bool:
        """Return whether the shard is in the cache and was verified since this object was made."""
        try:
            status = self.path(shard).stat()
        except FileNotFoundError:
            return False
        return status.st_size == shard.bytes and status.st_mtime_ns >= self.opened

    def is_whole(self, shard: Shard) -> bool:
        """Verify a shard's file. Return whether it is in the cache and right. Remove a damaged one."""
        path = self.path(shard)
        try:
            fault = find_fault(path, shard)
            if not fault:
                touch(path, checked=True)
                return True
        except FileNotFoundError:
            return False
        print_note(f"{path}: damaged ({fault}); fetching {shard.name} again")
        path.unlink(missing_ok=True)
        return False

    def make_room(self, shard: Shard, part: Path) -> bool:
        """Reserve room for a shard by creating its `part` file. Remove the least recently used shards if needed.

        Return False if there is no room, because other processes fetch too much at the same time.
        """
        with self.lock("folder"):
            # Add up what is used, with this shard. Remove the parts of processes that were killed.
            files = []
            used = shard.bytes
            for path in self.folder.iterdir():
                match = CACHE_FILE.fullmatch(path.name)
                if not match:
                    continue
                if match["size"]:
                    used += 0 if self.is_orphan(path, part) else int(match["size"])
                else:
                    try:
                        status = path.stat()
                    except FileNotFoundError:  # another process has just removed it, as damaged
                        continue
                    files.append((status.st_atime_ns, status.st_size, path))
                    used += status.st_size
            # Remove shards, least recently used first, until this one fits.
            for _, size, path in sorted(files):
                if used <= self.limit:
                    break
                path.unlink(missing_ok=True)
                used -= size
            if used > self.limit:
                return False
            # The part file reserves the room.
            part.touch()
            return True

    def is_orphan(self, path: Path, own: Path) -> bool:
        """Return whether no other process writes a part file. Remove it if its process was killed.

        A running process holds the lock of the shard that it fetches. `own` is the part of the calling process.
        """
        if path == own:
            return True
        try:
            with self.lock(path.name.split(".")[0]).acquire(timeout=0):
                path.unlink(missing_ok=True)
                return True
        except Timeout:
            return False


def fetch_listed(address: str, target: Path, retry: RetryPolicy, shard: Shard) -> None:
    """Fetch a shard of the index and verify it.

    Raises:
        ShardError: The shard cannot be fetched.
    """
    try:
        fetch(address, target, retry, lambda path: find_fault(path, shard))
    except FileNotFoundError:
        raise ShardError(f"{address}: no such file, but the index beside it lists it") from None


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Convert an OSError of the cache's disk to a ShardError with one line that names the file."""
    try:
        yield
    except OSError as error:
        path = error.filename or folder
        reason = error.strerror or error
        raise ShardError(
            f"{path}: cannot be read or written ({reason}); data.cache_dir={folder} must allow both"
        ) from None


def touch(path: Path, *, checked: bool = False) -> None:
    """Set a file's atime to now: it was used. With `checked`, set its mtime, too: it was verified."""
    now = time.time_ns()
    try:
        os.utime(path, ns=(now, now if checked else path.stat().st_mtime_ns))
    except FileNotFoundError:  # another process has just removed it to make room
        return


class Prefetcher:
    """A thread that fetches the next shards into the cache. It starts with the first call of `fetch`."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.wanted: queue.SimpleQueue[list[LocatedShard]] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None

    def fetch(self, shards: Iterable[LocatedShard]) -> None:
        """Fetch these shards instead of those of the last call. Return at once, without waiting.

        Failures are ignored: the reader fetches the shard itself when it needs it, and reports the error.
        """
        self.wanted.put([located for located in shards if is_remote(located.address)])
        if self.thread is None:
            self.thread = threading.Thread(target=self.run, name="shard prefetcher", daemon=True)
            self.thread.start()

    def run(self) -> None:
        """Fetch the requested shards, one after another. A new request replaces the rest of the old one."""
        while True:
            for located in self.wanted.get():
                if not self.wanted.empty():
                    break
                try:
                    self.cache.require(located, wait=False)
                except InputError:
                    continue
