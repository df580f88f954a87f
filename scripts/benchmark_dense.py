"""Measure what dense prediction costs: time and memory of large images, and their growth with the number of pixels.

    python scripts/benchmark_dense.py                                                   # n12: an hour on two cores
    python scripts/benchmark_dense.py --model xcit_s12 --figures growth --sides 512,1024,2048

Three figures:

    large     One image of 6000 × 4000 pixels through the pyramid, each task and the classifier, in fp32 and bf16.
    growth    Square images through the pyramid and the tasks, and through the pyramid of a ViT. The exponent is that of
              cost = constant · pixels ^ exponent, fitted by least squares to the logarithms. 1 is linear growth.
    training  Forward and backward of the pyramid, without and with gradient checkpointing.

Each measurement runs in a process of its own, first on a small image. The sides have their turns size by size. The
memory is what the process needs beyond the model and the image. A case that needs more than --limit-gb "does not fit",
and a case that would take longer than --longest-s, by the growth so far, is "not run". XCiT is folded as in eval.py,
ViT is timm's. The script writes the rows to dense_bench.json and the plot to dense_growth.png.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # because scripts/ is not installed

import xcit
from scripts import dense_cases
from scripts.dense_cases import PARTS, Case
from scripts.dense_report import Found, cells, draw, exponent, print_exponents, print_table, same
from xcit.command import ArgumentParser, guarded
from xcit.errors import InputError, choose
from xcit.models.variants import VARIANTS
from xcit.storage import write_text

FIGURES = ("large", "growth", "training")
VIT = {128: "vit_tiny_patch16_224", 192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224"}
"""The ViT for a width; vit_base for others. It has the size of the XCiT, but no ViT is as small as n12."""
GROWING = ("pyramid", "detect", "semantic_fpn")


@guarded
def main() -> None:
    arguments = parse_arguments()
    cases = list_cases(arguments)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    rows = []
    for figure, listed in cases.items():
        found: Found = {}
        for case in listed:
            seconds = expected_seconds(case, found)
            if seconds <= arguments.longest_s:
                found[case] = cost = dense_cases.measure(case, arguments.rounds, arguments.limit_gb)
                result = ", ".join(cells(cost, arguments.limit_gb))
                rows.append({"figure": figure, **asdict(case), **asdict(cost)})
            else:
                result = f"not run: would take {seconds:.0f} s"
            name = f"{case.model}/{case.patch_size} {case.width}x{case.height} {case.part} {case.mode}"
            print(f"{figure}: {name}: {result}", file=sys.stderr, flush=True)
            write_text(Path(arguments.json), json.dumps(rows, indent=1) + "\n")
        print_table(figure, found, arguments.limit_gb)
        if figure == "growth":
            print_exponents(found)
            draw(found, Path(arguments.plot))


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model", choices=xcit.list_models(), default="xcit_n12", help="default: %(default)s")
    parser.add_argument("--patch-sizes", default="16,8", help="default: %(default)s")
    parser.add_argument("--figures", default=",".join(FIGURES), help="default: %(default)s")
    parser.add_argument("--parts", default=",".join(PARTS), help="of the large image (default: %(default)s)")
    parser.add_argument("--modes", default="fp32,bf16", help="of the large image (default: %(default)s)")
    parser.add_argument("--large", default="6000,4000", help="its width and height (default: %(default)s)")
    parser.add_argument("--sides", default="512,768,1024,1536,2048,3072", help="for growth (default: %(default)s)")
    parser.add_argument("--training-sides", default="256,512,1024", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="runs of a case, unless they take long (default: 3)")
    parser.add_argument("--limit-gb", type=float, default=20, help="memory of a case (default: %(default)s)")
    parser.add_argument("--longest-s", type=float, default=120, help="time of a case (default: %(default)s)")
    parser.add_argument("--json", default="dense_bench.json", help="the file for the rows (default: %(default)s)")
    parser.add_argument("--plot", default="dense_growth.png", help="the file of the plot (default: %(default)s)")
    return parser.parse_args()


def list_cases(arguments: argparse.Namespace) -> dict[str, list[Case]]:
    """The cases of each figure. The sides take turns."""

    def named(option: str, names: Sequence[str]) -> list[str]:
        listed = getattr(arguments, option).split(",")
        return [choose({name: name for name in names}, name, f"--{option}") for name in listed]

    def numbers(option: str) -> list[int]:
        listed = getattr(arguments, option).split(",")
        if not all(number.isdecimal() and int(number) > 0 for number in listed):
            raise InputError(f"--{option.replace('_', '-')}={','.join(listed)}: must be numbers, separated by commas")
        return [int(number) for number in listed]

    figures, parts, modes = named("figures", FIGURES), named("parts", PARTS), named("modes", ("fp32", "bf16"))
    width, height, *more = *numbers("large"), 0
    if not height or more != [0]:
        raise InputError(f"--large={arguments.large}: must be a width and a height, as 6000,4000")
    ours = arguments.model
    models = ours, VIT.get(VARIANTS[ours]["dim"], "vit_base_patch16_224")
    cases: dict[str, list[Case]] = {name: [] for name in figures}
    for patch in numbers("patch_sizes"):
        found = {
            "large": [Case(part, ours, patch, height, width, mode) for part in parts for mode in modes],
            "growth": [
                Case(part, model, patch, side, side)
                for side in sorted(numbers("sides"))
                for part, model in (*((part, ours) for part in GROWING), ("pyramid", models[1]))
            ],
            "training": [
                Case("pyramid", model, patch, side, side, mode)
                for side in sorted(numbers("training_sides"))
                for mode in ("training", "checkpointed")
                for model in models
            ],
        }
        for name in figures:
            cases[name] += found[name]
    return cases


def expected_seconds(case: Case, found: Found) -> float:
    """By the two next smaller images, or else in proportion to the square of the pixels."""
    before = [c for c in found if same(c, case) and found[c].seconds]
    if not before:
        return 0
    last = before[-1]
    growth = exponent(before[-2:], found, "seconds") if len(before) > 1 else 1
    return statistics.median(found[last].seconds) * (case.pixels / last.pixels) ** growth


if __name__ == "__main__":
    main()
