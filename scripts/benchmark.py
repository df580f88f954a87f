"""Measure the speed and memory of our XCiT beside timm's, with the same weights and inputs, in turns, in one process.

    python scripts/benchmark.py                                  # the usual cases: half an hour on two CPU cores
    python scripts/benchmark.py --cases s12/16@224x8 --figures inference,training,memory --rounds 10

Each side runs as its users run it. Our model is folded for inference, compiled layer by layer, and trained with the
optimizer of train.py. timm's model runs unchanged, is compiled as a whole, and is trained with timm's optimizer. On a
GPU both use channels-last memory and, by default, bf16.

The script prints a row for each case (model/patch@pixels x batch) and figure: the medians of both sides, their ratio,
and the range of the ratio over the rounds. It writes the rows to bench.json: model, image_size, batch_size, mode,
figure, ours, timm, ratio, lowest, highest, share, of_eager. The share is our part of the machine's best rate for a
matrix product, counted by the operations of timm's model. The script first prints the machine's rates: of a linear
layer, of the same product as a 1 × 1 convolution in channels-last memory, and of our matrix product.

With --figures inference_onnx or inference_aoti, ours is a file of scripts/export.py, run by ONNX Runtime or compiled by
AOTInductor, and of_eager is its speed by that of our eager model. They run only on machines without a GPU.
"""

import argparse
import json
import os
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch._inductor.config
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # because scripts/ is not installed

import xcit
from scripts.benchmark_steps import EXPORTED, TIMED, exported_inference
from scripts.measurements import Rates, in_turns, kept_by, measure_machine, operations_of, rate
from xcit.command import ArgumentParser, guarded
from xcit.engine.progress import Progress
from xcit.errors import InputError, choose
from xcit.export.formats import format_named
from xcit.kernels import forced
from xcit.kernels.dispatch import KINDS
from xcit.kernels.self_check import check_triton_kernels
from xcit.storage import write_text
from xcit.tables import show_table
from xcit.weights.published import long_name

CASES = {
    "cpu": ("n12/16@224x16", "s12/16@224x16", "s12/8@224x4", "s12/16@384x4", "s12/8@384x1"),
    "cuda": ("s12/16@224x256",),
}


@dataclass(frozen=True)
class Case:
    model: str
    patch_size: int
    image_size: int
    batch_size: int

    @classmethod
    def read(cls, text: str) -> "Case":
        """Read s12/16@224x8: the S12 at patch 16, at 224 pixels, in batches of 8."""
        found = re.fullmatch(r"(\w+)/(\d+)@(\d+)x(\d+)", text)
        if not found:
            raise InputError(f"--cases={text}: must be MODEL/PATCH@PIXELSxBATCH, as s12/16@224x8")
        model = f"xcit_{found[1]}"
        choose({name: name for name in xcit.list_models()}, model, "--cases")
        case = cls(model, *map(int, found.groups()[1:]))
        if case.patch_size not in (8, 16) or case.batch_size < 1 or case.image_size < case.patch_size:
            raise InputError(f"--cases={text}: must have a patch of 8 or 16, at least one image, of at least one patch")
        return case

    def models(self, device: torch.device) -> dict[str, nn.Module]:
        """Both models, with the same weights."""
        torch.manual_seed(0)
        theirs = timm.create_model(f"{long_name(self.model, self.patch_size)}_224")
        ours = xcit.create_model(self.model, patch_size=self.patch_size)
        xcit.load_weights(ours, theirs.state_dict())
        models = {"ours": ours.to(device), "timm": theirs.to(device)}
        if device.type == "cuda":
            theirs.to(memory_format=torch.channels_last)
        return models

    def images(self, device: torch.device) -> Tensor:
        images = torch.randn(self.batch_size, 3, self.image_size, self.image_size, device=device)
        return images.contiguous(memory_format=torch.channels_last) if device.type == "cuda" else images


@dataclass(frozen=True)
class Row:
    model: str
    image_size: int
    batch_size: int
    mode: str
    figure: str
    ours: float
    timm: float
    ratio: float
    lowest: float
    highest: float
    share: float | None = None
    of_eager: float | None = None
    """Of an export: its speed by that of our eager model, the median of the rounds."""


FIGURES = (*TIMED, "memory", *EXPORTED)
USUAL = {
    "cpu": [name for name in FIGURES if not name.endswith("_bf16_compiled") and name not in EXPORTED],
    "cuda": [name for name in FIGURES if "bf16" in name],
}


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
    for figure in EXPORTED.keys() & set(figures):
        if device.type != "cpu":
            raise InputError(f"--figures={figure}: is for machines without a GPU")
        format_named(EXPORTED[figure]).require()
    kernels = choose({kind: kind for kind in KINDS}, arguments.kernels, "--kernels")
    if arguments.rounds < 1:
        raise InputError(f"--rounds={arguments.rounds}: must be at least 1")
    table = Path(arguments.json).absolute()
    if table.is_dir() or not os.access(table.parent, os.W_OK):
        raise InputError(f"--json={arguments.json}: must be a file in a folder that exists and can be written to")
    # Measure the machine.
    with Progress() as progress:
        torch._inductor.config.force_disable_caches = True  # because the time to compile is one of the figures
        progress.begin("measuring the machine")
        best = measure_machine(device, {TIMED[name].dtype for name in figures if name in TIMED})
        if arguments.figures is None and device.type == "cpu" and best[torch.bfloat16] < best[torch.float32]:
            print("bf16 is slower than fp32 on this machine; it is measured only if --figures lists it")
            figures = [name for name in figures if not name.endswith("_bf16")]
        # Measure the models, and write all rows after each case and figure, so that an interruption loses little.
        rows: list[Row] = []
        check_triton_kernels(torch.empty(1, device=device))  # the self-check of the kernels, before anything is timed
        for case in cases:
            for figure in figures:
                print(f"{case} {figure}", file=sys.stderr, flush=True)
                progress.begin(f"{case} {figure}")
                with forced(kernels):
                    if figure in EXPORTED:
                        rows.append(timed_export(case, figure, arguments.rounds, device))
                    elif figure == "memory":
                        rows += saved_tensors(case, device)
                    else:
                        rows += timed(case, figure, arguments.rounds, device, best)
                write_text(table, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print_table(rows)


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
    parser.add_argument("--json", default="bench.json", help="the file for the rows (default: bench.json)")
    return parser.parse_args()


def timed(case: Case, name: str, rounds: int, device: torch.device, best: Rates) -> list[Row]:
    """Measure images/s of both sides, and the seconds of the first step if they are compiled."""
    figure, images, models = TIMED[name], case.images(device), case.models(device)
    operations = case.batch_size * operations_of(models["timm"], images[:1], figure.training)
    steps = {side: figure.step(model, images) for side, model in models.items()}
    del models
    if figure.compiled:
        torch.compile(torch.sin)(images)  # starts the compiler's processes, so that neither side's first step does
    first = {side: [1 / rate(step, 1, device)] for side, step in steps.items()}
    rates = in_turns(steps, rounds, device)
    speeds = {side: [case.batch_size * one for one in found] for side, found in rates.items()}
    mode = "compiled" if figure.compiled else "eager"
    share = statistics.median(rates["ours"]) * operations / best[figure.dtype]
    rows = [row(case, mode, name, speeds["ours"], speeds["timm"], share)]
    if figure.compiled:
        rows.append(row(case, mode, f"{name}: first step, s", first["ours"], first["timm"]))
    return rows


def timed_export(case: Case, name: str, rounds: int, device: torch.device) -> Row:
    """Measure images/s of our exported model beside our eager model and timm's."""
    images, models = case.images(device), case.models(device)
    steps = {side: TIMED["inference"].step(model, images) for side, model in models.items()}
    steps["export"] = exported_inference(models["ours"].eval(), EXPORTED[name], images)
    speeds = {side: [case.batch_size * one for one in found] for side, found in in_turns(steps, rounds, device).items()}
    of_eager = statistics.median(a / b for a, b in zip(speeds["export"], speeds["ours"], strict=True))
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


def row(case: Case, mode: str, figure: str, ours: list[float], theirs: list[float], share: float | None = None) -> Row:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    medians = statistics.median(ours), statistics.median(theirs)
    spread = statistics.median(ratios), min(ratios), max(ratios)
    model = f"{case.model}_p{case.patch_size}"
    return Row(model, case.image_size, case.batch_size, mode, figure, *medians, *spread, share)


def print_table(rows: list[Row]) -> None:
    table = Table()
    for column in ("model", "pixels", "batch", "figure", "ours", "timm", "ratio", "range", "share", "of eager"):
        table.add_column(column, justify="left" if column in ("model", "figure") else "right", overflow="fold")
    for r in rows:
        numbers: tuple[Any, ...] = (f"{r.ours:,.1f}", f"{r.timm:,.1f}", f"{r.ratio:.2f}")
        share = "" if r.share is None else f"{100 * r.share:.0f} %"
        spread = f"{r.lowest:.2f}–{r.highest:.2f}"
        of_eager = "" if r.of_eager is None else f"{r.of_eager:.2f}"
        table.add_row(r.model, str(r.image_size), str(r.batch_size), r.figure, *numbers, spread, share, of_eager)
    show_table(table)


if __name__ == "__main__":
    main()
