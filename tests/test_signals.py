"""Signals that arrive before training, after it, or at torchrun end a command in one line, and leave no process."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import xcit.evaluation.resolutions
from data.datasets.digits import Digits
from xcit.engine.stopping import StopSignals
from xcit.signals import Stopped

from .conftest import ROOT, TINY, Result, launch

Command = Callable[..., Result]
SMALL = (*TINY, "+model.depth=1", "+model.class_depth=1", "train.ema_decay=null", "resolutions=[16]")


def sends(number: signal.Signals) -> Callable[..., Any]:
    """A function that sends a signal to this process, twice as torchrun does, and swallows errors."""

    def send(*_: Any, **__: Any) -> None:
        try:
            signal.raise_signal(number)
        except Exception:
            pass
        finally:
            signal.raise_signal(number)

    return send


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_before_training_ends_the_command_in_one_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(Digits, "train", sends(number))
    result = command("train.py", *SMALL, "run_dir=run")
    assert (result.status, result.stdout, result.stderr) == (1, "", f"error: stopped by {number.name}\n")
    assert not list(tmp_path.iterdir())


def test_a_signal_during_the_final_evaluation_leaves_a_whole_run(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(xcit.evaluation.resolutions, "sweep", sends(signal.SIGTERM))
        result = command("train.py", *SMALL, "run_dir=run")
    line = "stopped by SIGTERM during the final evaluation; to evaluate the model: python eval.py checkpoint=run"
    assert (result.status, result.stdout, result.stderr.splitlines()[-1]) == (1, "", f"error: {line}")
    assert "Traceback" not in result.stderr
    before = {path for path in tmp_path.rglob("*") if path.name != "__pycache__"}
    assert not [path for path in before if path.name.startswith(".") or "results" in path.name]

    # The evaluation that it names runs, and a signal ends that command in the same way.
    with monkeypatch.context() as patched:
        patched.setattr(xcit.evaluation.resolutions, "sweep", sends(signal.SIGUSR1))
        result = command("eval.py", "checkpoint=run", "run_dir=eval")
    assert (result.status, result.stdout, result.stderr.splitlines()[-1]) == (1, "", "error: stopped by SIGUSR1")
    assert {path for path in tmp_path.rglob("*") if path.name != "__pycache__"} == before
    assert command("eval.py", "checkpoint=run", "run_dir=eval").status == 0


SECOND_CTRL_C = """
import atexit, signal
atexit.register(signal.raise_signal, signal.SIGINT)
"""
# What is imported when the signal comes: Hydra at the start, torch afterwards, or the code of a job.
AT_IMPORT = """
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException:
                pass
sys.meta_path.insert(0, Finder())
"""
IN_THE_SWEEPER = """
from hydra.plugins.sweeper import Sweeper
Sweeper.validate_batch_is_legal = lambda *_: signal.raise_signal(signal.SIGINT)
"""
IN_TRAINING = """
from xcit.engine.loop import Trainer
update = Trainer.update
Trainer.update = lambda *arguments: [signal.raise_signal(signal.SIGINT), update(*arguments)][1]
"""


@pytest.mark.parametrize(
    ("before", "multirun"),
    [
        (AT_IMPORT.format(name="hydra"), False),
        (AT_IMPORT.format(name="torch"), False),
        (IN_THE_SWEEPER, True),
        (IN_TRAINING, False),
    ],
    ids=["hydra", "torch", "sweeper", "training"],
)
def test_two_ctrl_c_at_any_moment_end_a_command_in_one_line(tmp_path: Path, before: str, multirun: bool) -> None:
    result = launch("train.py", *SMALL, *["-m", "seed=0,1"] * multirun, cwd=tmp_path, before=SECOND_CTRL_C + before)
    assert result.status == 1
    assert result.stderr.splitlines()[-1].startswith("error: stopped by SIGINT")
    assert result.stderr.count("stopped by") == 1
    assert "Traceback" not in result.stderr


def test_a_signal_after_the_last_checkpoint_is_not_lost() -> None:
    with pytest.raises(Stopped, match=r"^SIGTERM after the last update$"), StopSignals() as signals:
        assert signals.agreed() is None
        signal.raise_signal(signal.SIGTERM)


# The second process waits in a collective while the first builds the model. The signal goes to torchrun.
STOPPED_BY_TORCHRUN = """
import signal
import xcit
def wait(*_, **__):
    os.kill(os.getppid(), signal.SIGTERM)
    while True:
        signal.pause()
xcit.create_model = wait
"""


def test_torchrun_that_gets_a_signal_at_the_start_ends_all_processes(tmp_path: Path) -> None:
    result = launch("train.py", *SMALL, "run_dir=run", processes=2, cwd=tmp_path, before=STOPPED_BY_TORCHRUN)
    assert result.status == 1
    assert result.stderr.count("error: ") == 1
    assert "error: stopped by SIGTERM\n" in result.stderr
    assert "in wait" not in result.stderr, "no traceback of ours"
    assert not (tmp_path / "run").exists()


# Each process writes the ids of itself and of its data workers into a pipe, and goes on.
TELLS_ITS_IDS = """
import multiprocessing
from xcit.engine.loop import Trainer
update = Trainer.update
def update_and_tell(self, batches, position):
    if self.state.step == 1:
        ids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
        with open("ids", "w") as pipe:
            pipe.write(" ".join(map(str, ids)) + "\\n")
    return update(self, batches, position)
Trainer.update = update_and_tell
"""


@pytest.fixture
def no_hang() -> Iterator[None]:
    """End a test that waits for processes in vain."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


@pytest.mark.usefixtures("no_hang")
def test_all_processes_end_when_torchrun_is_killed(tmp_path: Path) -> None:
    start = "import os, runpy, sys\ndel sys.argv[0]\nsys.path.insert(0, os.path.dirname(sys.argv[0]))"
    script = f"{start}\n{TELLS_ITS_IDS}\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    (tmp_path / "before.py").write_text(script)
    os.mkfifo(tmp_path / "ids")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [*SMALL, "data.workers=1", "train.epochs=100000", "train.log_every=1000", "run_dir=run"]
    agent = subprocess.Popen(
        [*torchrun, "before.py", str(ROOT / "train.py"), *arguments],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    ids: list[int] = []
    try:
        while len(ids) < 4:
            with (tmp_path / "ids").open() as pipe:
                ids += map(int, pipe.read().split())
        handles = [os.pidfd_open(number) for number in ids]
        agent.kill()
        for handle in handles:
            poll = select.poll()
            poll.register(handle, select.POLLIN)  # readable when the process has ended
            assert poll.poll(30_000), "a process outlives torchrun"
            os.close(handle)
    finally:
        agent.kill()
        agent.wait()
        for number in ids:
            subprocess.run(["kill", "-9", str(number)], stderr=subprocess.DEVNULL, check=False)
