"""Measure the speed and memory of our XCiT beside timm's, with the same weights and inputs, in turns, in one process.

    python scripts/benchmark.py                                  # the usual cases: half an hour on two CPU cores
    python scripts/benchmark.py --cases s12/16@224x8 --figures inference,training,memory --rounds 10

Each side runs as its users run it. Our model is folded for inference, compiled layer by layer, and trained with the
optimizer of train.py. timm's model runs unchanged, is compiled as a whole, and is trained with timm's optimizer. On a
GPU both use channels-last memory, fused AdamW and, by default, bf16.

The script prints a row for each case (model/patch@pixels x batch) and figure: the medians of both sides, their ratio,
and the range of the ratio over the rounds. It writes the rows to bench.json: model, image_size, batch_size, mode,
figure, ours, timm, ratio, lowest, highest, share, of_eager. The share is our part of the machine's best rate for a
matrix product, counted by the operations of timm's model. The script first prints the machine's rates: of a linear
layer, of the same product as a 1 × 1 convolution in channels-last memory, and of our matrix product.

--minutes bounds the time: figures that have not begun by then are named and not measured. One that is still measured a
minute later, as when a compiler hangs, ends the script with status 1 and says where it was. On a GPU each training
figure adds rows: the milliseconds of a step in which kernels run, their number, and the share of the step in which the
GPU is busy. Beside bench.json, bench.kernels.txt lists the slowest kernels, and bench.FIGURE.trace.json.gz
is a trace of our step in the first case. "peak_memory" is the peak of a step in MB. "loop" has the images/s of train.py
on JPEGs in the column of ours, and those of our bare step on a batch in memory in the column of timm.

With --figures inference_onnx or inference_aoti, ours is a file of scripts/export.py, run by ONNX Runtime or compiled by
AOTInductor, and of_eager is its speed by that of our eager model. They run only on machines without a GPU.
"""

import argparse
import faulthandler
import gc
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import torch
import torch._inductor.config

sys.path.insert(0, str(Path(__file__).parents[1]))  # because scripts/ is not installed

from scripts.benchmark_cases import Case, Row, print_table, row
from scripts.benchmark_steps import EXPORTED, TIMED, exported_inference
from scripts.gpu_figures import loop, peaks, profiled
from scripts.measurements import Rates, in_turns, kept_by, measure_machine, operations_of, rate
from xcit.command import ArgumentParser, guarded
from xcit.engine.progress import Progress
from xcit.errors import InputError, choose
from xcit.export.formats import format_named
from xcit.kernels import forced
from xcit.kernels.dispatch import KINDS
from xcit.kernels.self_check import check_triton_kernels
from xcit.storage import write_text

CASES = {
    "cpu": ("n12/16@224x16", "s12/16@224x16", "s12/8@224x4", "s12/16@384x4", "s12/8@384x1"),
    "cuda": ("s12/16@224x256", "s12/16@224x1024", "s12/8@384x64"),
}

FIGURES = (*TIMED, "memory", "peak_memory", "loop", *EXPORTED)
ON_GPU = {name for name, figure in TIMED.items() if figure.needs_gpu} | {"peak_memory", "loop"}
"""Figures for machines with a GPU."""
USUAL = {
    "cpu": [name for name in FIGURES if not name.endswith("_bf16_compiled") and name not in {*ON_GPU, *EXPORTED}],
    # Those that take seconds come first, then the most important ones: compiling takes minutes and may hang.
    "cuda": [
        *("training_bf16_graph", "training_bf16", "inference_bf16", "peak_memory"),
        *("training_bf16_compiled_graph", "inference_bf16_compiled", "loop"),
        *("training_bf16_reduce_overhead", "inference_bf16_reduce_overhead", "training_bf16_compiled"),
        *("training_bf16_autotuned", "inference_bf16_autotuned"),
    ],
}
GRACE = 60
"""Seconds after --minutes in which a figure may end."""


@guarded
def main() -> None:
    # Check the options before anything is measured.
    arguments = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = [Case.read(text) for text in named(arguments.cases, CASES[device.type])]
    figures = [
        choose({name: name for name in FIGURES}, name, "--figures")
        for name in named(arguments.figures, USUAL[device.type])
    ]
    for figure in ON_GPU & set(figures):
        if device.type != "cuda":
            raise InputError(f"--figures={figure}: is for machines with a GPU")
    for figure in EXPORTED.keys() & set(figures):
        if device.type != "cpu":
            raise InputError(f"--figures={figure}: is for machines without a GPU")
        format_named(EXPORTED[figure]).require()
    kernels = choose({kind: kind for kind in KINDS}, arguments.kernels, "--kernels")
    if arguments.rounds < 1:
        raise InputError(f"--rounds={arguments.rounds}: must be at least 1")
    if arguments.minutes <= 0:
        raise InputError(f"--minutes={arguments.minutes:g}: must be greater than 0")
    table = Path(arguments.json).absolute()
    if table.is_dir() or not os.access(table.parent, os.W_OK):
        raise InputError(f"--json={arguments.json}: must be a file in a folder that exists and can be written to")
    for profile in ("kernels.txt", *(f"{name}.trace.json.gz" for name in TIMED)):
        table.with_suffix(f".{profile}").unlink(missing_ok=True)  # of an earlier run
    # Measure the machine.
    end = time.monotonic() + 60 * arguments.minutes
    with ends_by(60 * arguments.minutes + GRACE), Progress() as progress:
        torch._inductor.config.force_disable_caches = True  # because the time to compile is one of the figures
        progress.begin("measuring the machine")
        best = measure_machine(device, {TIMED[name].dtype for name in figures if name in TIMED})
        if arguments.figures is None and device.type == "cpu" and best[torch.bfloat16] < best[torch.float32]:
            print("bf16 is slower than fp32 on this machine; it is measured only if --figures lists it")
            figures = [name for name in figures if not name.endswith("_bf16")]
        # Measure the models, and write all rows after each case and figure, so that an interruption loses little.
        rows: list[Row] = []
        check_triton_kernels(torch.empty(1, device=device))  # the self-check of the kernels, before anything is timed
        missing: list[str] = []
        for figure, case in itertools.product(figures, cases):
            if time.monotonic() > end:
                missing.append(f"{case} {figure}: not measured, because --minutes={arguments.minutes:g} are over")
                continue
            print(f"{case} {figure}", file=sys.stderr, flush=True)
            progress.begin(f"{case} {figure}")
            # Forget compiled code: after eight versions of a layer, torch.compile would run it uncompiled.
            torch.compiler.reset()
            gc.collect()
            try:
                with forced(kernels):
                    rows += measure(case, figure, arguments.rounds, device, best, table)
            # Out of memory, a compiler's error, or a run of train.py that hangs: the other figures may work.
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                missing.append(f"{case} {figure}: {str(error).splitlines()[0]}")
                print(missing[-1], file=sys.stderr, flush=True)
            write_text(table, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print_table(rows)
    for line in missing:
        print(line)
    if missing:
        sys.exit(1)


@contextmanager
def ends_by(seconds: float) -> Iterator[None]:
    """End the process with status 1 if the context lasts longer, even if it hangs in compiled code."""
    if seconds < math.inf:
        faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def named(listed: str | None, usual: Sequence[str]) -> Sequence[str]:
    """The names in an option's comma-separated list, each once; or the usual ones."""
    return usual if listed is None else list(dict.fromkeys(name.strip() for name in listed.split(",")))


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    usual = "; ".join(f"default on {device}: {','.join(cases)}" for device, cases in CASES.items())
    parser.add_argument("--cases", help=f"comma-separated MODEL/PATCH@PIXELSxBATCH, with patch 8 or 16; {usual}")
    parser.add_argument(
        "--figures", help=f"comma-separated, of {', '.join(FIGURES)}; default: those that suit the device"
    )
    parser.add_argument(
        "--kernels", default="auto", help=f"the kernels of our model: {', '.join(KINDS)} (default: auto)"
    )
    parser.add_argument("--rounds", type=int, default=10, help="turns of each side (default: 10)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no figure begins later (default: no limit)")
    parser.add_argument("--json", default="bench.json", help="the file for the rows (default: bench.json)")
    return parser.parse_args()


def measure(case: Case, figure: str, rounds: int, device: torch.device, best: Rates, table: Path) -> list[Row]:
    """The rows of a figure. table: the file of --json; profiles are written beside it."""
    if figure in EXPORTED:
        return [timed_export(case, figure, rounds, device)]
    if figure == "memory":
        return saved_tensors(case, device)
    if figure == "peak_memory":
        return [peaks(case, device)]
    if figure == "loop":
        return [loop(case, rounds, device)]
    return timed(case, figure, rounds, device, best, table)


def timed(case: Case, name: str, rounds: int, device: torch.device, best: Rates, table: Path) -> list[Row]:
    """Measure images/s of both sides, and the seconds of the first step if they are compiled."""
    figure, images, models = TIMED[name], case.images(device), case.models(device)
    operations = case.batch_size * operations_of(models["timm"], images[:1], figure.training)
    steps = {side: figure.step(model, images) for side, model in models.items()}
    del models
    if figure.compiled:
        torch.compile(torch.sin)(images)  # starts the compiler's processes, so that neither side's first step does
    first = {side: [1 / rate(step, 1, device)] for side, step in steps.items()}
    if figure.warm_up:
        for step in steps.values():
            rate(step, figure.warm_up, device)
    rates = in_turns(steps, rounds, device)
    speeds = {side: [case.batch_size * one for one in found] for side, found in rates.items()}
    mode = "compiled" if figure.compiled else "eager"
    share = median(rates["ours"]) * operations / best[figure.dtype]
    rows = [row(case, mode, name, speeds["ours"], speeds["timm"], share)]
    if figure.compiled:
        rows.append(row(case, mode, f"{name}: first step, s", first["ours"], first["timm"]))
    if figure.training and device.type == "cuda":
        rows += profiled(case, mode, name, steps, rates, device, table)
    return rows


def timed_export(case: Case, name: str, rounds: int, device: torch.device) -> Row:
    """Measure images/s of our exported model beside our eager model and timm's."""
    images, models = case.images(device), case.models(device)
    steps = {side: TIMED["inference"].step(model, images) for side, model in models.items()}
    steps["export"] = exported_inference(models["ours"].eval(), EXPORTED[name], images)
    speeds = {side: [case.batch_size * one for one in found] for side, found in in_turns(steps, rounds, device).items()}
    of_eager = median(a / b for a, b in zip(speeds["export"], speeds["ours"], strict=True))
    return replace(row(case, EXPORTED[name], name, speeds["export"], speeds["timm"]), of_eager=of_eager)


def saved_tensors(case: Case, device: torch.device) -> list[Row]:
    """Megabytes that the forward pass saves for the backward pass, without and with our gradient checkpointing."""
    models, images = case.models(device), case.images(device)
    found = {side: [kept_by(model, images)] for side, model in models.items()}
    models["ours"].set_grad_checkpointing()  # type: ignore[operator]
    checkpointed = [kept_by(models["ours"], images)]
    return [
        row(case, "eager", "saved tensors, MB", found["ours"], found["timm"]),
        row(case, "eager", "saved tensors, MB: checkpointed", checkpointed, found["timm"]),
    ]


if __name__ == "__main__":
    main()
