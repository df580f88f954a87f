"""Print how to reproduce each table and figure of the paper: the command, the published number and the cost.

    python scripts/reproduce.py --list                 # everything (the default)
    python scripts/reproduce.py --only table4          # a table or figure, or part of the name of a model or file
    python scripts/reproduce.py --only s12 --json      # a list of rows as JSON

Each row is two lines: a comment with the model, the published number and the cost, then the command. "—" stands for an
unknown number, "not built yet" for a missing command.

Hours are estimates: 3 × the FLOPs of a forward pass × images × epochs, divided by the sustained throughput of the GPUs
(--tflops for each). The FLOPs are counted on the model at the row's resolution, where a multiply-add counts as two.
With a teacher, its forward pass is added. A run takes longer if memory or the loader limits it.
"""

import argparse
import functools
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

sys.path.insert(0, str(Path(__file__).parents[1]))  # because scripts/ is not installed

from scripts.dense_cost import detection_flops, segmentation_flops
from scripts.paper_results import SECTIONS, Row, every_row
from xcit import InputError
from xcit.command import ArgumentParser, guarded
from xcit.config.composition import section_for
from xcit.config.training import LoopConfig
from xcit.errors import unknown
from xcit.evaluation.flops import forward_flops, teacher_flops
from xcit.models import MODELS
from xcit.tasks.dino import GLOBAL_CROPS

ROOT = Path(__file__).parents[1]

PEAK_TFLOPS = 312.0  # of an A100 in bf16
SUSTAINED_SHARE = 0.3
DEFAULT_TFLOPS = SUSTAINED_SHARE * PEAK_TFLOPS
TRAINING_OVER_FORWARD = 3  # the backward pass costs two forward passes

# Training images of each data set.
IMAGES = {
    "imagenet": 1_281_167,
    "coco": 117_266,  # with objects
    "cifar10": 50_000,
    "cifar100": 50_000,
    "flowers": 2_040,
    "cars": 8_144,
    "inat 2018": 437_513,
    "inat 2019": 265_213,
}


@dataclass(frozen=True)
class Needs:
    """The cost of a command."""

    gpus: int
    hours: float | None = None
    """None if the command takes minutes."""
    gmacs: float | None = None
    """10⁹ multiply-adds of a forward pass, for one image."""

    def __str__(self) -> str:
        gpus = f"{self.gpus} GPU{'s' * (self.gpus > 1)}"
        if self.hours is None:
            return f"{gpus}, minutes"
        time = f"{self.hours:.1f} h" if self.hours >= 1 else f"{60 * self.hours:.0f} min"
        return f"{gpus}, {time} (estimate)"


@guarded
def main() -> None:
    arguments = parse_arguments()
    chosen = [(section, row) for section, row in every_row() if matches(section, row, arguments.only)]
    if not chosen:
        names = [*SECTIONS, *dict.fromkeys(row.model for _, row in every_row())]
        raise InputError(unknown(arguments.only, "--only", names))
    needed = ((section, row, needs(row.command, arguments.tflops)) for section, row in chosen)
    try:
        if arguments.json:
            rows = [as_json(*found, arguments.tflops) for found in needed]
            print(json.dumps(rows, indent=1, ensure_ascii=False), flush=True)
        else:
            print_rows(needed, arguments.tflops)
    except BrokenPipeError:  # the reader, for example head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    peak = f"{SUSTAINED_SHARE:.0%}% of an A100's {PEAK_TFLOPS:.0f} in bf16"
    parser.add_argument("--list", action="store_true", help="print everything (the default)")
    parser.add_argument("--only", metavar="NAME", default="", help=f"{', '.join(SECTIONS)}, or part of a model's name")
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON")
    parser.add_argument(
        "--tflops",
        type=positive,
        default=DEFAULT_TFLOPS,
        help=f"of each GPU (default: %(default).1f, {peak})",
    )
    return parser.parse_args()


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0")
    return value


def matches(section: str, row: Row, query: str) -> bool:
    """Whether --only selects the row: by its section's name or title, its model, or its file of weights."""
    title = re.sub(r"\W", "", f"{section}{SECTIONS[section][0]}").lower()
    word = re.sub(r"\W", "", query).lower()
    return (bool(word) and word in title) or query.lower() in f"{row.model} {row.weights}"


def needs(command: str | None, tflops: float) -> Needs | None:
    """The cost of a command on GPUs that sustain `tflops` each; None if it is unknown."""
    words = shlex.split(command or "")
    if "eval.py" in words or "scripts/show_attention.py" in words:
        return Needs(gpus=1)
    if "train.py" not in words:
        return None
    gpus = next((int(w.partition("=")[2]) for w in words if w.startswith("--nproc-per-node=")), 1)
    config: Any = OmegaConf.to_container(composed(command), resolve=True)
    # FLOPs of an image: the mean over the sizes if they grow during the run. With DINO, those of all of its crops; its
    # teacher sees the global ones.
    model = section_for("model", config["model"], MODELS).model_validate(config["model"])
    sizes = config["augment"]["image_sizes"] or [config["data"]["image_size"]]
    forward = sum(forward_flops(model.entry, size, **model.options) for size in sizes) / len(sizes)
    task, augment = config["task"], config["augment"]
    teacher: float = teacher_flops(task["teacher"], task["teacher_image_size"]) if task["name"] == "distill" else 0
    if task["name"] == "detect":
        forward = detection_flops(model.entry, sizes[0], task["channels"], **model.options)
    if task["name"] == "segment":
        forward = segmentation_flops(model.entry, sizes[0], task["head"], **model.options)
    if task["name"] == "dino":
        local = augment["local_crops"] * forward_flops(model.entry, augment["local_size"], **model.options)
        teacher, forward = GLOBAL_CROPS * forward, GLOBAL_CROPS * forward + local
    # From the FLOPs of an image to the hours of the run.
    images = IMAGES.get(" ".join(str(config["data"][key]) for key in ("name", "year") if key in config["data"]), 0)
    length = LoopConfig.model_validate(config["train"]).scaled(images, gpus)
    seen = (length.updates or 0) * length.global_batch_size or images * (length.epochs or 0)
    flops = (TRAINING_OVER_FORWARD * forward + teacher) * seen
    return Needs(gpus, hours=flops / (gpus * tflops * 1e12) / 3600, gmacs=forward / 2e9)


@functools.cache
def composed(command: str) -> DictConfig:
    """The configuration of a command of train.py or eval.py."""
    words = shlex.split(command)
    script = next(word for word in words if word in ("train.py", "eval.py"))
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return compose(script.removesuffix(".py"), words[words.index(script) + 1 :])


def print_rows(rows: Iterable[tuple[str, Row, Needs | None]], tflops: float) -> None:
    assumed = f", {SUSTAINED_SHARE:.0%} of an A100's {PEAK_TFLOPS:.0f} in bf16" if tflops == DEFAULT_TFLOPS else ""
    print(
        "# $IMAGENET: the folder with train/ and val/. $DATA: the folder of the transfer data sets. "
        "$COCO, $ADE20K: their folders. $PHOTO: an image file."
    )
    print(f"# Hours are estimates from FLOPs, at {tflops:.1f} TFLOP/s sustained by each GPU (--tflops){assumed}.")
    print("# For scale: timm's 640 images/s of xcit_s12_p16 in training on an RTX 3090 are 18.4 TFLOP/s.")
    last = ""
    for section, row, need in rows:
        if section != last:
            print(f"\n# {SECTIONS[section][0]}\n")
        last = section
        parts = [f"{row.model}, {row.what}", published_text(section, row), str(need or "needs: —"), row.note]
        print(f"# {' | '.join(filter(None, parts))}\n{row.command or '# not built yet'}", flush=True)


def published_text(section: str, row: Row) -> str:
    known = [f"{metric} {value:.1f}" for metric, value in row.published.items() if value is not None]
    return ", ".join(known) or ("no claim" if section == "beyond" else "—")


def as_json(section: str, row: Row, need: Needs | None, tflops: float) -> dict[str, Any]:
    """`needs` is null if the cost is unknown, its `hours` if the command takes minutes."""
    estimate = {"estimate": True, "tflops": tflops} if need and need.hours is not None else {}
    return {"section": section, **asdict(row), "needs": need and asdict(need) | estimate}


if __name__ == "__main__":
    main()
