"""Measure the end-to-end gain of each CPU kernel: a training step and folded inference with it and without it.

    python scripts/benchmark_kernels.py                                   # s12/16 at 224, batch 16: half an hour
    python scripts/benchmark_kernels.py --model xcit_s12 --patch-size 8 --image-size 384 --batch-size 1 \
        --operations covariance                                           # for many tokens

For each operation, steps with the kernel and steps with torch's implementation alternate in one process. The script
prints rows for docs/kernels.md: the medians in ms, and the median and the range of without / with over the rounds.
"""

import argparse
import contextlib
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import xcit
from xcit.command import ArgumentParser, guarded
from xcit.engine.optimizer import make_optimizer
from xcit.errors import InputError, choose
from xcit.kernels.dispatch import without
from xcit.models.class_attention import ClassAttention

TRAINING = (
    "attend",
    "batchnorm_gelu",
    "class_attention",
    "covariance",
    "gelu",
    "gelu_backward",
    "grad_bias",
    "grad_input",
    "grad_weight",
    "layer_norm_backward",
    "local_patch",
    "product",
)
INFERENCE = ("attend", "class_attention", "covariance", "folded_local_patch", "product")
OPERATIONS = sorted({*TRAINING, *INFERENCE})

Step = Callable[[], object]


@guarded
def main() -> None:
    arguments = parse_arguments()
    every = {name: name for name in OPERATIONS}
    names = [choose(every, name, "--operations") for name in arguments.operations.split(",")]
    if arguments.rounds < 1:
        raise InputError(f"--rounds={arguments.rounds}: must be at least 1")

    # Build the model, and its folded copy.
    torch.manual_seed(0)
    model = xcit.create_model(arguments.model, patch_size=arguments.patch_size)
    images = torch.randn(arguments.batch_size, 3, arguments.image_size, arguments.image_size)
    folded = xcit.fuse_for_inference(model)
    modes = {"training": (model, training(model, images)), "inference": (folded, inference(folded, images))}

    # Measure, and print a row at a time.
    case = f"{arguments.model}/{arguments.patch_size} at {arguments.image_size}, batch {arguments.batch_size}"
    print(f"{case}; {machine()}; {arguments.rounds} rounds\n")
    print("| operation | mode | with, ms | without, ms | without / with (range) |\n|---|---|---|---|---|")
    for name in names:
        for mode, operations in (("training", TRAINING), ("inference", INFERENCE)):
            if name in operations:
                print(f"| `{name}` | {mode} | {compare(name, *modes[mode], arguments.rounds)} |", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model", default="xcit_s12", help="xcit_n12, xcit_s12, …")
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    listed = f"comma-separated, of {', '.join(OPERATIONS)}; default: all"
    parser.add_argument("--operations", default=",".join(OPERATIONS), help=listed)
    parser.add_argument("--rounds", type=int, default=10)
    return parser.parse_args()


def inference(folded: nn.Module, images: torch.Tensor) -> Step:
    @torch.inference_mode()
    def step() -> object:
        return folded(images)

    return step


def training(model: nn.Module, images: torch.Tensor) -> Step:
    """Forward, backward, clipping and AdamW."""
    model.train()
    targets = torch.full((len(images), 1000), 1e-3)
    optimizer = make_optimizer(model, name="adamw", lr=1e-4, weight_decay=0.05, options={})

    def step() -> None:
        F.cross_entropy(model(images), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare(name: str, model: nn.Module, step: Step, rounds: int) -> str:
    """The cells of a row. The first round warms up and does not count."""
    times: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(rounds + 1):
        for on in (True, False) if turn % 2 else (False, True):
            with contextlib.nullcontext() if on else switched_off(name, model):
                start = time.perf_counter()
                step()
                times[on].append(1000 * (time.perf_counter() - start))
    ratios = [off / on for on, off in zip(times[True][1:], times[False][1:], strict=True)]
    with_it, without_it = (statistics.median(times[on][1:]) for on in (True, False))
    ratio = f"**{statistics.median(ratios):.3f}** ({min(ratios):.3f}–{max(ratios):.3f})"
    return f"{with_it:.1f} | {without_it:.1f} | {ratio}"


@contextlib.contextmanager
def switched_off(name: str, model: nn.Module) -> Iterator[None]:
    """Run torch's implementation of the operation. A hook on a part makes class attention run its plain form."""
    if name != "class_attention":
        with without(name):
            yield
        return
    attentions = [part for part in model.modules() if isinstance(part, ClassAttention)]
    handles = [part.q.register_forward_hook(lambda *given: None) for part in attentions]
    yield
    for handle in handles:
        handle.remove()


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = {line.split(": ")[1] for line in lines if line.startswith("model name")} or {platform.processor()}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    capability = torch.backends.cpu.get_cpu_capability()
    threads = f"{torch.get_num_threads()} threads"
    return f"{', '.join(models)}, {capability}, {threads}, torch {torch.__version__}, commit {commit.strip() or '?'}"


if __name__ == "__main__":
    main()
