"""Shared fixtures: small data sets of real image files, and functions that run the entry points as a user does."""

import contextlib
import functools
import io
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from matplotlib.figure import Figure
from PIL import Image

from xcit.engine import curves
from xcit.kernels import dispatch
from xcit.signals import SIGNALS

ROOT = Path(__file__).parents[1]

# A run that takes seconds: the smallest model, 16 × 16 pixels, four patches.
TINY = (
    "model.patch_size=8",
    "data.image_size=16",
    "train.global_batch_size=128",
    "train.epochs=1",
    "train.log_every=1",
    "resolutions=[16,24]",
)


# Compiles in this process. By default, torch.compile starts a pool of processes that import torch.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests with the marker "gpu" without a GPU, except where Triton's interpreter stands in for one."""
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@dataclass
class Result:
    status: int
    stdout: str
    stderr: str


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Result]:
    """command("train.py", "key=value", …) runs an entry point as __main__ in this process, in an empty folder."""

    def call(script: str, *arguments: str) -> Result:
        monkeypatch.chdir(tmp_path)  # for the rest of the test
        capsys.readouterr()
        status = run_here(script, *arguments, cwd=tmp_path)
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return call


def call_here(script: str, *arguments: str, cwd: Path) -> Result:
    """As `command`, for fixtures that several tests share. It is seconds faster than `launch`, which imports torch."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = run_here(script, *arguments, cwd=cwd)
    return Result(status, out.getvalue(), err.getvalue())


def run_here(script: str, *arguments: str, cwd: Path) -> int:
    """Runs an entry point as __main__ in this process, and returns its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [str(ROOT / script), *arguments])
        patch.setattr(curves, "draw", curves_alone)
        handlers = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGPIPE)}
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return 0


draw_curves = curves.draw


def curves_alone(runs: Any) -> Figure:
    """The curves of runs without axes, whose layout takes a second. `launch` and engine/test_curves.py draw axes."""
    figure = draw_curves(runs)
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_axis_off()
    return figure


def launch(
    script: str,
    *arguments: str,
    cwd: Path,
    processes: int = 1,
    before: str = "",
    timeout: float = 600,
    on_gpu: bool = False,
) -> Result:
    """Runs an entry point in separate processes, with torchrun if there is more than one.

    before: Python code that each process executes first.
    on_gpu: whether the processes may use the GPUs of the machine.
    """
    starter = [sys.executable]
    if processes > 1:
        starter += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    if before:
        path = cwd / "before.py"
        start = "import os, runpy, sys\ndel sys.argv[0]\nsys.path.insert(0, os.path.dirname(sys.argv[0]))"
        path.write_text(f"{start}\n{before}\nrunpy.run_path(sys.argv[0], run_name='__main__')\n")
        starter.append(str(path))
    # If an earlier test started a wandb service in this process, that service would keep the run of a killed child.
    inherited = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    hidden = {} if on_gpu else {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*starter, str(ROOT / script), *arguments],
        cwd=cwd,
        env=inherited | {"OMP_NUM_THREADS": "1"} | hidden,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def in_two_processes(work: Callable[[int, str], None], folder: Path) -> None:
    """Calls work(rank, folder) in two processes, which have one thread each.

    A fork has imported torch already. Where there is a GPU, it may not use autograd, and processes are spawned.
    """
    how = "spawn" if torch.cuda.is_available() else "fork"
    both = mp.start_processes(with_one_thread, (work, str(folder)), nprocs=2, join=False, start_method=how)
    end = time.monotonic() + 300  # a fork waits forever for a lock that another thread of its parent held
    while not both.join(timeout=1):
        if time.monotonic() > end:
            for process in both.processes:
                process.kill()
            pytest.fail("two processes did not end within 300 s")


def launch_forks(script: str, *arguments: str, cwd: Path) -> Result:
    """As launch(…, processes=2), but in forks of this process, which import nothing again, and without torchrun.

    torchrun itself starts the runs of test_commands.py, test_resuming.py, test_signals.py and test_bad_input.py.
    """
    if torch.cuda.is_available():
        return launch(script, *arguments, cwd=cwd, processes=2)
    results = cwd / "results_of_forks"
    results.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    work = functools.partial(one_of_two, script=script, arguments=arguments, cwd=cwd, port=port)
    in_two_processes(work, results)
    found = [Result(**json.loads(path.read_text())) for path in sorted(results.iterdir())]
    shutil.rmtree(results)
    one, two = found
    return Result(max(one.status, two.status), one.stdout + two.stdout, one.stderr + two.stderr)


def one_of_two(rank: int, results: str, *, script: str, arguments: Sequence[str], cwd: Path, port: int) -> None:
    """Runs an entry point with the environment that torchrun gives to one of two processes."""
    ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in ours.items()}, MASTER_ADDR="127.0.0.1")
    result = call_here(script, *arguments, cwd=cwd)
    Path(results, str(rank)).write_text(json.dumps(asdict(result)))
    for worker in multiprocessing.active_children():
        worker.kill()  # data workers, which DataLoader ends by atexit, but a fork does not come to that


def with_one_thread(rank: int, work: Callable[[int, str], None], folder: str) -> None:
    torch.set_num_threads(1)  # a fork has no pool of OpenMP threads
    work(rank, folder)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Uses one thread, as the processes that `launch` starts do, so that all runs are bit-identical."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def image_tree(tmp_path: Path) -> Callable[..., Path]:
    """image_tree("mine", {"train/red": 6, "val/red": 2, …}) writes a tree of images in several sizes and colors."""

    def make(name: str, counts: dict[str, int], suffix: str = ".png") -> Path:
        random = np.random.default_rng(0)
        for folder, count in counts.items():
            path = tmp_path / name / folder
            path.mkdir(parents=True)
            channel = sum(map(ord, path.name)) % 3
            for number in range(count):
                pixels = random.integers(0, 80, size=(20 + number, 24, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(path / f"{number:03}{suffix}")
        return tmp_path / name

    return make


@pytest.fixture(params=["oneDNN", "oneDNN forward", "torch"])
def each_product_route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test with each library that multiplies matrices on a CPU."""
    if request.param != "torch" and not dispatch.HAS_ONEDNN:
        pytest.skip("oneDNN's operators are for x86 CPUs with AVX2")
    monkeypatch.setattr(dispatch, "ONEDNN", request.param != "torch")
    monkeypatch.setattr(dispatch, "ONEDNN_BACKWARD", request.param == "oneDNN")
