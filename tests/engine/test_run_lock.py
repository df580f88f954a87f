"""One process at a time writes to a run folder."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from xcit.engine import run_lock
from xcit.engine.run_lock import STALE, Owner, RunLock
from xcit.errors import InputError, TrainingError

HOLD = """
import sys
from pathlib import Path
from xcit.engine import run_lock
from xcit.engine.run_lock import RunLock
RunLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
sys.stdin.read()
"""


def held_by_another_process(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


def write_lock(folder: Path, owner: Owner, age: float = 0.0) -> Path:
    path = folder / "run.lock"
    path.write_text(json.dumps(asdict(owner)))
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))
    return path


def test_a_second_process_is_refused_until_the_first_has_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = held_by_another_process(tmp_path)
    try:
        line = rf"run_dir={tmp_path}: another process is writing to it \(host \S+, pid {process.pid}, since \S+\)$"
        with pytest.raises(InputError, match=line):
            RunLock(tmp_path).acquire()
        assert {path.name for path in tmp_path.iterdir()} == {"run.lock"}
    finally:
        process.kill()
        process.wait()
    lock = RunLock(tmp_path)
    lock.acquire()
    lock.require_held()
    assert f"taking over the lock of a process that has ended (host {os.uname().nodename}" in capsys.readouterr().err
    lock.release()
    assert not any(tmp_path.iterdir())


def test_a_lock_may_be_taken_again_by_its_owner(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    for _ in range(2):
        lock.acquire()
    with pytest.raises(InputError, match=f"pid {os.getpid()}"):
        RunLock(tmp_path).acquire()
    lock.release()
    RunLock(tmp_path).acquire()


def test_a_pid_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    write_lock(tmp_path, replace(Owner.this_process(), started="1"))
    RunLock(tmp_path).acquire()


@pytest.mark.parametrize("machine", ["another kernel", ""])
def test_the_lock_of_another_machine_expires(
    tmp_path: Path, machine: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its processes cannot be looked up, so a touch decides. The test's clock runs without waiting."""
    owner = replace(Owner.this_process(), host="elsewhere", machine=machine, pid=1, started="1")
    path = write_lock(tmp_path, owner, age=STALE - 30)
    monkeypatch.setattr(run_lock.time, "sleep", lambda seconds: path.touch())
    with pytest.raises(InputError, match=r"another process is writing to it \(host elsewhere, pid 1, since "):
        RunLock(tmp_path).acquire()
    assert "waiting up to 30 s for a sign of life of host elsewhere" in capsys.readouterr().err

    # Without a touch it is taken over as soon as it is old enough.
    write_lock(tmp_path, owner, age=STALE - 30)
    monkeypatch.setattr(run_lock.time, "sleep", lambda seconds: None)
    ages = iter([STALE - 30, STALE - 20, STALE + 1])
    monkeypatch.setattr(run_lock, "seconds_since_touched", lambda path: next(ages))
    lock = RunLock(tmp_path)
    with pytest.raises(StopIteration):
        lock.acquire()
        next(ages)
    lock.require_held()


def test_the_lock_of_a_live_process_of_this_machine_never_expires(tmp_path: Path) -> None:
    """It may have been stopped by Ctrl-Z, or the machine may have slept."""
    process = held_by_another_process(tmp_path)
    try:
        path = tmp_path / "run.lock"
        os.utime(path, (path.stat().st_mtime - 10 * STALE,) * 2)
        with pytest.raises(InputError, match=f"pid {process.pid}"):
            RunLock(tmp_path).acquire()
    finally:
        process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    RunLock(tmp_path).acquire()  # its parent has not collected it: a zombie has ended, too
    process.wait()


def test_a_lock_that_is_just_being_written_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.lock"
    path.touch()
    monkeypatch.setattr(run_lock.time, "sleep", lambda seconds: path.write_text("its owner"))
    with pytest.raises(InputError, match=r"another process is writing to it \(unknown\)"):
        RunLock(tmp_path).acquire()


def test_an_owner_notices_that_it_was_taken_over(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    path = write_lock(tmp_path, replace(Owner.this_process(), host="elsewhere"))
    with pytest.raises(TrainingError, match="another process has taken over"):
        lock.require_held()
    lock.release()
    assert path.exists(), "it is the other's now"


def test_of_many_processes_one_gets_the_lock_of_a_dead_owner(tmp_path: Path) -> None:
    write_lock(tmp_path, replace(Owner.this_process(), started="1"))
    race = """
import sys
from pathlib import Path
from xcit.engine import run_lock
from xcit.engine.run_lock import RunLock
from xcit.errors import InputError
print("ready", flush=True)
sys.stdin.readline()
try:
    RunLock(Path(sys.argv[1])).acquire()
    print("won", flush=True)
except InputError:
    print("lost", flush=True)
sys.stdin.readline()
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", race, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    pipes = [(process.stdin, process.stdout) for process in processes if process.stdin and process.stdout]
    for _, stdout in pipes:
        assert stdout.readline() == "ready\n"
    for stdin, _ in pipes:
        stdin.write("go\n")
        stdin.flush()
    assert sorted(stdout.readline() for _, stdout in pipes) == ["lost\n", "lost\n", "won\n"]
    for process in processes:
        process.communicate("end\n")


def test_a_lock_that_was_removed_is_written_again(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    lock.path.unlink()
    lock.require_held()
    with pytest.raises(InputError, match=f"pid {os.getpid()}"):
        RunLock(tmp_path).acquire()
