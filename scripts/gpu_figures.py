"""What scripts/benchmark.py measures on a GPU besides rates: how busy it is, peak memory, and train.py's own speed."""

import gc
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity

from scripts.benchmark_cases import Case, Row, row
from scripts.benchmark_data import USUAL, make_jpegs
from scripts.benchmark_steps import TIMED
from scripts.measurements import Step, in_turns, rate

ROOT = Path(__file__).parents[1]
PROFILED = 1
"""Steps of a profile. PyTorch takes seconds to read one, for tens of thousands of events."""
LONGEST = 300
"""Seconds that a run of train.py may take."""
DISTINCT, UPDATES, LOG_EVERY = 64, 60, 10
"""Different JPEGs, updates, and updates between two rows of the run by train.py."""
GRAPH = ("train.precision=bf16", "train.channels_last=true", "train.cuda_graph=true")
"""How train.py runs what the bare step runs."""


def profiled(
    case: Case,
    mode: str,
    name: str,
    steps: dict[str, Step],
    rates: dict[str, list[float]],
    device: torch.device,
    table: Path,
) -> list[Row]:
    """Profile a step of both sides. The share of the time is that of the steps without the profiler.

    table: the file of --json; the profiles are written beside it.
    """
    found = {}
    for side, step in steps.items():
        trace = table.with_suffix(f".{name}.trace.json.gz")
        found[side] = profile_step(step, device, trace if side == "ours" and not trace.exists() else None)
        with table.with_suffix(".kernels.txt").open("a") as file:
            file.write(f"{case} {name}, {side}\n{found[side].table}\n")

    def compared(what: str, of_side: Callable[[str], float]) -> Row:
        return row(case, mode, f"{name}: {what}", [of_side("ours")], [of_side("timm")])

    return [
        compared("time of kernels, ms", lambda side: found[side].busy_ms),
        compared("kernels", lambda side: found[side].kernels),
        compared("GPU busy, %", lambda side: found[side].busy_ms * statistics.median(rates[side]) / 10),
    ]


def peaks(case: Case, device: torch.device) -> Row:
    """Megabytes at the peak of a training step in bf16."""

    def peak(side: str) -> list[float]:
        figure = TIMED["training_bf16"]
        return [peak_memory(lambda: figure.step(case.models(device)[side], case.images(device)), device)]

    return row(case, "eager", "peak memory of a step, MB", peak("ours"), peak("timm"))


def loop(case: Case, rounds: int, device: torch.device) -> Row:
    """Images/s of train.py, and of our bare step with a batch in memory."""
    figure = TIMED["training_bf16_graph"]
    step = figure.step(case.models(device)["ours"], case.images(device))
    rate(step, figure.warm_up, device)
    bare = [case.batch_size * one for one in in_turns({"ours": step}, rounds, device)["ours"]]
    del step  # train.py needs the memory, which its graph holds
    gc.collect()
    torch.cuda.empty_cache()
    speed = speed_of_training(case, GRAPH)
    return row(case, "graph", "loop: train.py, and the bare step", [speed] * rounds, bare)


@dataclass(frozen=True)
class Profile:
    """A step on the device."""

    busy_ms: float
    """Time in which at least one kernel runs, of a step."""
    kernels: float
    """Kernels of a step."""
    table: str
    """The kernels that take the longest."""


def profile_step(step: Step, device: torch.device, trace: Path | None = None) -> Profile:
    """Profile a step that is warmed up. On a CPU its operations stand for kernels.

    trace: the file for a trace that chrome://tracing and Perfetto show, NAME.json.gz.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(PROFILED):
            step()
        if on_gpu:
            torch.cuda.synchronize(device)
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events: Iterable[Any] = profiler.events() or ()
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == kind and not event.is_user_annotation
    ]
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=100)
    if trace:
        profiler.export_chrome_trace(str(trace))
    return Profile(union(spans) / PROFILED / 1000, len(spans) / PROFILED, table)


def union(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def peak_memory(make_step: Callable[[], Step], device: torch.device) -> float:
    """Megabytes on the GPU at the peak of a step: weights, optimizer, EMA and activations."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    step = make_step()
    for _ in range(2):  # the first step makes the optimizer's state
        step()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def speed_of_training(case: Case, options: Iterable[str]) -> float:
    """Images/s of a run of train.py on JPEGs of ImageNet's usual size: the median of its rows after the first two."""
    with TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        for number, path in enumerate(sorted(make_jpegs(Path(folder) / "made", USUAL, DISTINCT).rglob("*.jpg"))):
            # Links: an epoch is one long run of updates, and all files stay in the memory of the operating system.
            for copy in range(-(-UPDATES * case.batch_size // DISTINCT)):
                place(path, root / "train" / str(number % 2) / f"{number}-{copy}.jpg")
            place(path, root / "val" / str(number % 2) / path.name)
        run = Path(folder) / "run"
        workers = len(os.sched_getaffinity(0))
        command = [
            *(sys.executable, str(ROOT / "train.py"), f"run_dir={run}", "pretrained=null"),
            # Without stochastic depth, as the bare step.
            *(f"model={case.model}", f"model.patch_size={case.patch_size}", "model.drop_path_rate=0"),
            *("data=folder", f"data.root={root}", f"data.image_size={case.image_size}", f"data.workers={workers}"),
            *("augment=light", f"resolutions=[{case.image_size}]", f"train.global_batch_size={case.batch_size}"),
            *(f"train.updates={UPDATES}", f"train.log_every={LOG_EVERY}", "train.ema_decay=0.999", *options),
        ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LONGEST, check=False)
        if done.returncode:
            raise RuntimeError(f"train.py: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
        rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        return statistics.median([row["images_per_second"] for row in rows if row["split"] == "train"][2:])


def place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.hardlink_to(source)
