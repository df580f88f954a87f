"""How fast our XCiT is beside timm's: same weights, same inputs, turn by turn in one process.

    python scripts/benchmark.py                                  # the cases of the README, about an hour on two cores
    python scripts/benchmark.py --cases s12/16@224x8 --figures inference,training,memory --rounds 10

Prints a row for each case (model/patch@pixels x batch) and figure, with the medians of both sides, their ratio and the
range of the ratio over the rounds, and writes the rows to bench.json: model, image_size, batch_size, mode, figure,
ours, timm, ratio, lowest, highest. First come this machine's own rates: of a linear layer, and of the same product as
a 1 × 1 convolution over channels-last memory, which on some CPUs goes to the faster library.
"""

import argparse
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import xcit
from xcit.command import guarded
from xcit.engine.optimizer import make_optimizer
from xcit.errors import InputError, choose
from xcit.models.published import long_name
from xcit.storage import write_text

CASES = ("n12/16@224x16", "s12/16@224x8", "s12/8@224x4", "s12/16@384x4", "s12/8@384x1")
SECONDS = 0.5
"""A turn repeats its step for about as long, so that a reading of the clock does not matter."""

Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    model: str
    patch_size: int
    image_size: int
    batch_size: int

    @classmethod
    def read(cls, text: str) -> "Case":
        found = re.fullmatch(r"(\w+)/(\d+)@(\d+)x(\d+)", text)
        if not found:
            raise InputError(f"--cases={text}: must be MODEL/PATCH@PIXELSxBATCH, as s12/16@224x8")
        model = f"xcit_{found[1]}"
        choose({name: name for name in xcit.list_models()}, model, "--cases")
        return cls(model, *map(int, found.groups()[1:]))

    def models(self, device: torch.device) -> dict[str, nn.Module]:
        """Both models, with the same weights."""
        torch.manual_seed(0)
        theirs = timm.create_model(f"{long_name(self.model, self.patch_size)}_224")
        ours = xcit.create_model(self.model, patch_size=self.patch_size)
        xcit.load_weights(ours, theirs.state_dict())
        return {"ours": ours.to(device), "timm": theirs.to(device)}

    def images(self, device: torch.device) -> Tensor:
        return torch.randn(self.batch_size, 3, self.image_size, self.image_size, device=device)


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


def inference(model: nn.Module, images: Tensor) -> Step:
    model.eval()

    @torch.inference_mode()
    def step() -> Tensor:
        return model(images)

    return step


def training(model: nn.Module, images: Tensor) -> Step:
    """Forward, backward, clipping, AdamW, EMA: what an update of a run does."""
    model.train()
    targets = torch.full((len(images), 1000), 1e-3, device=images.device)
    optimizer = make_optimizer(model, name="adamw", lr=1e-4, weight_decay=0.05, options={})
    ema = ModelEmaV3(model, decay=0.999)

    def step() -> None:
        F.cross_entropy(model(images), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model)

    return step


def in_bf16(make: Callable[[nn.Module, Tensor], Step]) -> Callable[[nn.Module, Tensor], Step]:
    def made(model: nn.Module, images: Tensor) -> Step:
        step = make(model, images)

        def cast() -> object:
            with torch.autocast(images.device.type, dtype=torch.bfloat16):
                return step()

        return cast

    return made


def compiled(make: Callable[[nn.Module, Tensor], Step]) -> Callable[[nn.Module, Tensor], Step]:
    def made(model: nn.Module, images: Tensor) -> Step:
        model.compile()
        return make(model, images)

    return made


# figure → what is timed, in images/s
TIMED: dict[str, Callable[[nn.Module, Tensor], Step]] = {
    "inference": inference,
    "training": training,
    "inference_bf16": in_bf16(inference),
    "training_bf16": in_bf16(training),
    "inference_compiled": compiled(inference),
    "training_compiled": compiled(training),
}
FIGURES = (*TIMED, "memory")


@guarded()
def main() -> None:
    arguments = parse_arguments()
    cases = [Case.read(text) for text in arguments.cases.split(",")]
    figures = [choose({name: name for name in FIGURES}, name, "--figures") for name in arguments.figures.split(",")]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print_machine(device)
    rows: list[Row] = []
    for case in cases:
        for figure in figures:
            print(f"{case} {figure}", file=sys.stderr, flush=True)
            rows.append(saved_tensors(case, device) if figure == "memory" else timed(case, figure, arguments, device))
            write_text(Path(arguments.json), json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print_table(rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="MODEL/PATCH@PIXELSxBATCH, with commas")
    parser.add_argument("--figures", default=",".join(FIGURES), help=f"of {', '.join(FIGURES)}")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", default="bench.json")
    return parser.parse_args()


def timed(case: Case, figure: str, arguments: argparse.Namespace, device: torch.device) -> Row:
    images = case.images(device)
    steps = {side: TIMED[figure](model, images) for side, model in case.models(device).items()}
    rates = in_turns(steps, arguments.rounds, device)
    speeds = {side: [case.batch_size * rate for rate in found] for side, found in rates.items()}
    mode = "eager" if "compiled" not in figure else "compiled"
    return row(case, mode, figure, speeds["ours"], speeds["timm"])


def in_turns(steps: dict[str, Step], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Steps a second of each, over rounds in which all have their turn."""
    repeats = {side: max(1, round(SECONDS * rate(step, 1, device))) for side, step in warmed(steps, device)}
    found: dict[str, list[float]] = {side: [] for side in steps}
    for _ in range(rounds):
        for side, step in steps.items():
            found[side].append(rate(step, repeats[side], device))
    return found


def warmed(steps: dict[str, Step], device: torch.device) -> Iterable[tuple[str, Step]]:
    for side, step in steps.items():
        rate(step, 2, device)
        yield side, step


def rate(step: Step, repeats: int, device: torch.device) -> float:
    """Steps a second."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return repeats / (time.perf_counter() - started)


def saved_tensors(case: Case, device: torch.device) -> Row:
    """Megabytes that the forward pass of a training step keeps for the backward pass, parameters not counted."""
    found = {}
    for side, model in case.models(device).items():
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor, own: set[int] = own, kept: dict[int, int] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model.train()(case.images(device))
        found[side] = [sum(kept.values()) / 1e6]
        del output
    return row(case, "eager", "saved tensors, MB", found["ours"], found["timm"])


def row(case: Case, mode: str, figure: str, ours: list[float], theirs: list[float]) -> Row:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    medians = statistics.median(ours), statistics.median(theirs)
    spread = statistics.median(ratios), min(ratios), max(ratios)
    return Row(f"{case.model}_p{case.patch_size}", case.image_size, case.batch_size, mode, figure, *medians, *spread)


def print_machine(device: torch.device) -> None:
    """What the machine can do at best: the products of the s12's FFN, by two routes."""
    tokens = torch.randn(8, 196, 384, device=device)
    linear, conv = nn.Linear(384, 1536, device=device), nn.Conv2d(384, 1536, 1, device=device)
    image = tokens.mT.unflatten(-1, (14, 14))  # the same memory, channels last
    flops = 2 * tokens.numel() * 1536
    with torch.inference_mode():
        rates = in_turns({"linear": lambda: linear(tokens), "1×1 convolution": lambda: conv(image)}, 5, device)
    told = ", ".join(f"{name} {flops * statistics.median(found) / 1e9:,.0f} GFLOP/s" for name, found in rates.items())
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}; fp32: {told}")


def print_table(rows: list[Row]) -> None:
    table = Table()
    for column in ("model", "pixels", "batch", "figure", "ours", "timm", "ratio", "range"):
        table.add_column(column, justify="left" if column in ("model", "figure") else "right")
    for r in rows:
        numbers: tuple[Any, ...] = (f"{r.ours:,.1f}", f"{r.timm:,.1f}", f"{r.ratio:.2f}")
        spread = f"{r.lowest:.2f} – {r.highest:.2f}"
        table.add_row(r.model, str(r.image_size), str(r.batch_size), r.figure, *numbers, spread)
    Console().print(table)


if __name__ == "__main__":
    main()
