"""The lock of a run folder: only one process writes to it at a time.

The lock is the file run.lock, which names its owner. The owner touches it every few seconds. A lock is taken over at
once if its owner was a process of this machine that has ended. The processes of other machines cannot be looked up, so
their locks are taken over when they have not been touched for a while. This works on network file systems, too: it
needs only that creating and renaming a file are atomic, and it measures the age of a lock by the clock of the file
system.
"""

import json
import os
import platform
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from ..errors import InputError, TrainingError, print_note
from ..storage import aside_of

LOCK = "run.lock"
HEARTBEAT = 10.0
"""Seconds between two touches."""
STALE = 90.0
"""Seconds after which the lock of another machine is taken over."""
POLL = 2.0
"""Seconds between two looks at such a lock."""


@dataclass(frozen=True)
class Owner:
    """A process, as the lock names it."""

    host: str
    pid: int
    since: str
    """When it took the lock."""
    machine: str
    """Identifies the running kernel and the PID namespace, in which the PID is valid."""
    started: str
    """When the process started, in ticks of the kernel: PIDs are used again."""

    @classmethod
    def this_process(cls) -> "Owner":
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        return cls(platform.node(), os.getpid(), now, machine(), started(os.getpid()))

    @property
    def has_ended(self) -> bool:
        """Whether it was a process of this machine and is no more. False for other machines."""
        return bool(self.machine) and self.machine == machine() and started(self.pid) != self.started

    def __str__(self) -> str:
        return f"host {self.host}, pid {self.pid}, since {self.since}"


def machine() -> str:
    """Empty where there is no /proc."""
    with suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116
    return ""


def started(pid: int) -> str:
    """When a process started; empty if it has ended."""
    with suppress(OSError):
        # The name of the program is in parentheses and may hold spaces. Then come field 3, the state, and field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]  # Z and X: it has ended, but its parent has not noticed
    return ""


class RunLock:
    """The lock of one run folder. `acquire` may be called again by the process that holds it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self.content = b""
        """What the lock file holds while it is ours."""
        self.released = threading.Event()

    @property
    def is_ours(self) -> bool:
        """Whether this object took the lock."""
        return bool(self.content)

    def acquire(self) -> None:
        """Take the lock, or take over that of a dead owner.

        Raises:
            InputError: Another process holds it.
            OSError: The lock cannot be written.
        """
        if self.is_ours:
            return
        content = json.dumps(asdict(Owner.this_process())).encode()
        while not create(self.path, content):
            with suppress(FileNotFoundError):  # released in the meantime
                take_over(self.path)
        self.content = content
        self.released.clear()
        threading.Thread(target=self.keep_alive, daemon=True).start()

    def require_held(self) -> None:
        """Check that the lock is still ours. Create it again if it was removed.

        Raises:
            TrainingError: Another process took it over, because this one slept too long.
            OSError: The folder is gone or cannot be read.
        """
        if not create(self.path, self.content) and self.path.read_bytes() != self.content:
            raise TrainingError(
                f"{self.path.parent}: another process has taken over the lock of this run, which ends here"
            )

    def release(self) -> None:
        self.released.set()
        with suppress(OSError):
            if self.content and self.path.read_bytes() == self.content:
                self.path.unlink()
        self.content = b""

    def keep_alive(self) -> None:
        """Touch the lock until it is released."""
        while not self.released.wait(HEARTBEAT):
            with suppress(OSError):
                if self.path.read_bytes() == self.content:
                    os.utime(self.path)


def create(path: Path, content: bytes) -> bool:
    """Create the lock file. Return False if it exists. If it cannot be written, there is none."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def take_over(path: Path) -> None:
    """Remove the lock of a dead owner. Wait if that cannot be known yet.

    Raises:
        InputError: The owner is alive.
    """
    content = path.read_bytes()
    owner = parse(content)
    if owner and owner.machine and owner.machine == machine():
        is_dead = owner.has_ended
    else:
        is_dead = expires(path, owner)
    if not is_dead:
        raise InputError(f"run_dir={path.parent}: another process is writing to it ({owner or 'unknown'})")
    aside = aside_of(path)
    path.rename(aside)
    if aside.read_bytes() != content:  # another process took the lock over first: this is its new lock
        aside.rename(path)
        return
    aside.unlink()
    print_note(f"{path.parent}: taking over the lock of a process that has ended ({owner or 'unknown'})")


def expires(path: Path, owner: Owner | None) -> bool:
    """Wait until the lock is touched, or has not been touched for STALE seconds. Return whether it is the latter."""
    touched = path.stat().st_mtime_ns
    age = seconds_since_touched(path)
    if age < STALE:
        print_note(f"{path.parent}: waiting up to {STALE - age:.0f} s for a sign of life of {owner or 'its owner'}")
    while age < STALE:
        time.sleep(POLL)
        if path.stat().st_mtime_ns != touched:
            return False
        age = seconds_since_touched(path)
    return True


def parse(content: bytes) -> Owner | None:
    try:
        return Owner(**json.loads(content))
    except (ValueError, TypeError):
        return None  # its owner has just created it and has not written yet


def seconds_since_touched(path: Path) -> float:
    """By the clock of the file system, which may differ from this machine's."""
    probe = aside_of(path)
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
