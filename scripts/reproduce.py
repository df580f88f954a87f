"""How each table and figure of the paper is reproduced: the command, the published number, what it needs.

    python scripts/reproduce.py --list                 # everything (the default)
    python scripts/reproduce.py --only table4          # a table or figure, or part of a model's or a weight file's name
    python scripts/reproduce.py --only s12 --json      # a list of rows for machines

Prints two lines for each row: a comment with the model, the published number and what it takes, then the command, in
one piece however narrow the terminal is. "—" is a number that is not known here, "not built yet" a command to come.

Hours are estimates: 3 × the FLOPs of a forward pass, counted on the very model at the row's resolution (a multiply-add
is two; with a teacher, its forward pass is added) × images × epochs, at the sustained throughput of --tflops for each
GPU. XCiT's small operators, or the loader, may well be what limits a run. A training ends with its own evaluation.
"""

import argparse
import functools
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch.utils.flop_counter import FlopCounterMode

from xcit import InputError
from xcit.command import ArgumentParser, guarded
from xcit.composition import section_for
from xcit.errors import unknown
from xcit.models import MODELS, create_model
from xcit.models.ablations import ABLATIONS, as_overrides
from xcit.preprocessing import data_settings
from xcit.weights.published import PUBLISHED, Published, long_name

ROOT = Path(__file__).parents[1]

PEAK_TFLOPS = 312.0  # an A100's in bf16
SUSTAINED_SHARE = 0.3
TRAINING_OVER_FORWARD = 3  # the backward pass costs two forward passes

# Images that a training epoch goes through; those of the data sets' authors.
IMAGES = {
    "imagenet": 1_281_167,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "flowers": 2_040,
    "cars": 8_144,
    "inat 2018": 437_513,
    "inat 2019": 265_213,
}

# Commands to come. All that one needs here is its template, with {model}, {patch_size}, {weights} and {size} in it.
LATER: dict[str, str | None] = {
    "cost": None,
    "attention_maps": None,
    "knn": None,
    "linear": None,
    "mask_rcnn": None,
    "semantic_fpn": None,
    "upernet": None,
}

# model, patch → COCO's box and mask mAP (Mask R-CNN), ADE20k's mIoU (Semantic FPN, UperNet).
DENSE: dict[tuple[str, int], tuple[float, float, float, float | None]] = {
    ("xcit_t12", 16): (42.7, 38.5, 38.1, 41.5),
    ("xcit_t12", 8): (44.5, 40.3, 39.9, 43.5),
    ("xcit_s12", 16): (45.3, 40.8, 43.9, 45.9),
    ("xcit_s12", 8): (47.0, 42.3, 44.2, 46.6),
    ("xcit_s24", 16): (46.5, 41.8, 44.6, None),
    ("xcit_s24", 8): (48.1, 43.0, 47.1, 48.1),
    ("xcit_m24", 16): (46.7, 42.0, 45.9, None),
    ("xcit_m24", 8): (48.5, 43.7, 46.9, 48.4),
}
DINO_AT_384 = ("xcit_m24", 8, 80.9)  # linear

SIZES = "'resolutions=[160,192,224,256,288,320,384,448,512]'"
OTHERS = (  # with the tags of timm's weights
    "resnet50.a1_in1k",
    "regnety_160.deit_in1k",
    "deit_small_patch16_224.fb_in1k",
    "cait_s24_224.fb_dist_in1k",
    "swin_tiny_patch4_window7_224.ms_in1k",
)
TRANSFER_SETS = ("cifar10", "cifar100", "flowers", "cars", "inat data.year=2018", "inat data.year=2019")


@dataclass(frozen=True)
class Row:
    """One number of the paper."""

    model: str
    what: str
    command: str | None
    """None: not built yet."""
    published: Mapping[str, float | None] = field(default_factory=dict)
    """Metric → value in percent; empty where none is known."""
    weights: str = ""
    """The file of published weights that it is about."""
    note: str = ""


@dataclass(frozen=True)
class Needs:
    gpus: int
    hours: float | None = None
    """None: minutes."""
    gmacs: float | None = None
    """Of a forward pass, in 10⁹ multiply-adds, an image."""

    def __str__(self) -> str:
        gpus = f"{self.gpus} GPU{'s' * (self.gpus > 1)}"
        if self.hours is None:
            return f"{gpus}, minutes"
        time = f"{self.hours:.1f} h" if self.hours >= 1 else f"{60 * self.hours:.0f} min"
        return f"{gpus}, {time} (estimate)"


def main_rows() -> Iterator[Row]:
    for entry in PUBLISHED.values():
        if entry.top1 is None:
            continue
        model = f"{entry.model}_p{entry.patch_size}"
        how = f"at {entry.input_size}{', distilled' if 'dist' in entry.tag else ''}"
        top1, stem = {"top-1": entry.top1}, entry.file.removesuffix(".pth")
        yield Row(model, f"{how}, evaluate", evaluation(stem), top1, entry.file)
        yield Row(model, f"{how}, train", training_of(entry), top1, note=doubts(entry))


def training_of(entry: Published) -> str:
    patch = "" if entry.patch_size == 16 else f"model.patch_size={entry.patch_size}"
    distilled = f"runs/{entry.model}_p{entry.patch_size}_dist"
    match entry.tag:
        case "fb_in1k":
            return training(entry.model, f"recipe=paper_p{entry.patch_size}")
        case "fb_dist_in1k":
            return training(entry.model, patch, "recipe=distill_hard", f"run_dir={distilled}")
        case _:
            return training(entry.model, patch, "recipe=finetune_384 task=distill", f"pretrained={distilled}")


def doubts(entry: Published) -> str:
    drop_path = ["drop_path_rate from memory"] if entry.model in ("xcit_t24", "xcit_l24") else []
    recipe = ["rate, batch and length unpublished, DeiT's taken"] if entry.input_size == 384 else []
    return "; ".join(drop_path + recipe)


def resolution_rows() -> Iterator[Row]:
    for model, patch_size in (("xcit_s12", 16), ("xcit_s12", 8)):
        entry = PUBLISHED[f"{model}_p{patch_size}.fb_in1k"]
        published = {"top-1 at 224": entry.top1}
        command = evaluation(entry.file.removesuffix(".pth"), SIZES)
        yield Row(f"{model}_p{patch_size}", "evaluate", command, published, entry.file)
    for tagged in ("deit_small_patch16_224.fb_in1k", "resnet50.a1_in1k"):
        name = tagged.partition(".")[0]
        yield Row(name, "evaluate", evaluation(f"timm/{tagged}", SIZES))


def ablation_rows() -> Iterator[Row]:
    base = {"top-1": PUBLISHED["xcit_s12_p16.fb_in1k"].top1}
    for what, options in ABLATIONS.values():
        command = training("xcit_s12", "recipe=paper_p16", *as_overrides(options))
        yield Row("xcit_s12_p16", f"{what}, train", command, {} if options else base)


def transfer_rows() -> Iterator[Row]:
    for model in ("xcit_s12", "xcit_s24", "xcit_m24"):
        for name in TRANSFER_SETS:
            command = f"torchrun --nproc-per-node=8 train.py model={model} data={name} data.root=$DATA"
            what = f"{name.replace('data.year=', '')}, fine-tune"
            yield Row(f"{model}_p16", what, f"{command} pretrained=fb_dist_in1k")


def comparison_rows() -> Iterator[Row]:
    for tagged in OTHERS:
        name = tagged.partition(".")[0]
        yield Row(name, "evaluate", evaluation(f"timm/{tagged}"))
        yield Row(name, "train by the paper's recipe", training("timm", f"model.name={name}"))


def cost_rows() -> Iterator[Row]:
    for patch_size in (16, 8):
        yield later("cost", "xcit_s12", patch_size, "memory and time an image, by resolution")


def attention_rows() -> Iterator[Row]:
    yield later("attention_maps", "xcit_s12", 8, "class-attention maps of each head")


def dino_rows() -> Iterator[Row]:
    for entry in PUBLISHED.values():
        if entry.tag == "fb_dino":
            model, patch_size, file = entry.model, entry.patch_size, entry.file
            yield later("knn", model, patch_size, "k-NN at 224", {"k-NN top-1": entry.knn}, file)
            yield later("linear", model, patch_size, "linear at 224", {"linear top-1": entry.linear}, file)
    model, patch_size, value = DINO_AT_384
    file = PUBLISHED[f"{model}_p{patch_size}.fb_dino"].file
    yield later("linear", model, patch_size, "linear at 384", {"linear top-1": value}, file, 384)


def coco_rows() -> Iterator[Row]:
    for (model, patch_size), (box, mask, *_) in DENSE.items():
        yield later("mask_rcnn", model, patch_size, "Mask R-CNN, 3× schedule", {"box mAP": box, "mask mAP": mask})


def ade20k_rows() -> Iterator[Row]:
    for (model, patch_size), (*_, semantic_fpn, upernet) in DENSE.items():
        yield later("semantic_fpn", model, patch_size, "Semantic FPN, 80k iterations", {"mIoU": semantic_fpn})
        yield later("upernet", model, patch_size, "UperNet, 160k iterations", {"mIoU": upernet})


def beyond_rows() -> Iterator[Row]:
    for recipe, after in (
        ("deit3", "deit3_finetune_384"),
        ("small_long", None),
        ("muon", None),
        ("low_resolution", "low_resolution_finetune"),
        ("progressive", None),
    ):
        folder = f"runs/xcit_s12_p16_{recipe}"
        run_dir = f"run_dir={folder}" if after else ""
        yield Row("xcit_s12_p16", recipe, training("xcit_s12", f"recipe={recipe}", run_dir))
        if after:
            command = training("xcit_s12", f"recipe={after}", f"pretrained={folder}")
            yield Row("xcit_s12_p16", f"{after}, after it", command)


def later(
    key: str,
    model: str,
    patch_size: int,
    what: str,
    published: Mapping[str, float | None] | None = None,
    weights: str | None = None,
    size: int = 224,
) -> Row:
    """A row whose command is LATER[key]."""
    weights, template = weights or f"{long_name(model, patch_size)}_224.pth", LATER[key]
    stem = weights.removesuffix(".pth")
    command = template and template.format(model=model, patch_size=patch_size, weights=stem, size=size)
    return Row(f"{model}_p{patch_size}", what, command, published or {}, weights)


def training(model: str, *more: str) -> str:
    start = f"torchrun --nproc-per-node=8 train.py model={model} data=imagenet data.root=$IMAGENET"
    return " ".join([start, *filter(None, more)])


def evaluation(checkpoint: str, *more: str) -> str:
    return " ".join([f"python eval.py checkpoint={checkpoint} data=imagenet data.root=$IMAGENET", *more])


# name → (title, rows)
SECTIONS: dict[str, tuple[str, Callable[[], Iterator[Row]]]] = {
    "table2": ("Table 2 (its number from memory): ImageNet-1k, every published model", main_rows),
    "figure2": ("Figure 2 (its models from memory): peak memory and time", cost_rows),
    "figure3": ("Figure 3 (its models from memory): top-1 against test resolution", resolution_rows),
    "figure4": ("Figure 4 (its model from memory): attention maps", attention_rows),
    "table3": ("Table 3 (its number from memory): backbones trained by DINO, frozen", dino_rows),
    "table4": ("Table 4 and appendix: ablation (in one go: scripts/ablations.py)", ablation_rows),
    "table5": ("Table 5 (its number from memory): COCO", coco_rows),
    "table6": ("Table 6 (its number from memory): ADE20k", ade20k_rows),
    "transfer": ("Transfer (models, rates and lengths are ours)", transfer_rows),
    "comparison": ("Comparison: other models through the same loop", comparison_rows),
    "beyond": ("Beyond the paper: no claim", beyond_rows),
}


@guarded()
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
    except BrokenPipeError:  # the reader, head say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    peak = f"{SUSTAINED_SHARE:.0%}% of an A100's {PEAK_TFLOPS:.0f} in bf16"
    parser.add_argument("--list", action="store_true", help="print everything, as without any option")
    parser.add_argument("--only", metavar="NAME", default="", help=f"{', '.join(SECTIONS)}, or part of a model's name")
    parser.add_argument("--json", action="store_true", help="a list of rows instead of text")
    parser.add_argument(
        "--tflops",
        type=positive,
        default=SUSTAINED_SHARE * PEAK_TFLOPS,
        help=f"sustained by each GPU (default: %(default).1f, {peak})",
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


def every_row() -> Iterator[tuple[str, Row]]:
    for name, (_, rows) in SECTIONS.items():
        for row in rows():
            yield name, row


def matches(section: str, row: Row, query: str) -> bool:
    """Whether --only means the row: by its section's name or title, its model, or its file of weights."""
    title = re.sub(r"\W", "", f"{section}{SECTIONS[section][0]}").lower()
    word = re.sub(r"\W", "", query).lower()
    return (bool(word) and word in title) or query.lower() in f"{row.model} {row.weights}"


def needs(command: str | None, tflops: float) -> Needs | None:
    """What a command takes; None where that is not known."""
    words = shlex.split(command or "")
    if "eval.py" in words:
        return Needs(gpus=1)
    if "train.py" not in words:
        return None
    gpus = next((int(w.partition("=")[2]) for w in words if w.startswith("--nproc-per-node=")), 1)
    config: Any = OmegaConf.to_container(composed(command), resolve=True)
    model = section_for("model", config["model"], MODELS).model_validate(config["model"])
    sizes = config["augment"]["image_sizes"] or [config["data"]["image_size"]]
    forward = sum(forward_flops(model.entry, size, **model.options) for size in sizes) / len(sizes)
    teacher = teacher_flops(config["task"]["teacher"]) if config["task"]["name"] == "distill" else 0
    images = IMAGES[" ".join(str(config["data"][key]) for key in ("name", "year") if key in config["data"])]
    flops = (TRAINING_OVER_FORWARD * forward + teacher) * images * config["train"]["epochs"]
    return Needs(gpus, hours=flops / (gpus * tflops * 1e12) / 3600, gmacs=forward / 2e9)


@functools.cache
def composed(command: str) -> DictConfig:
    """The configuration that a command of train.py or eval.py means."""
    words = shlex.split(command)
    script = next(word for word in words if word in ("train.py", "eval.py"))
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return compose(script.removesuffix(".py"), words[words.index(script) + 1 :])


@functools.cache
def forward_flops(model: str, size: int, /, **options: Any) -> int:
    """Of one square image; a multiply-add counts as two. On the meta device, where nothing is computed."""
    with torch.device("meta"):
        network = create_model(model, **options).eval().requires_grad_(False)  # the counter follows gradients, if any
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, size, size))
    return counter.get_total_flops()


@functools.cache
def teacher_flops(name: str) -> int:
    """Of a teacher's forward pass, at the size that it is made for."""
    with torch.device("meta"):
        size = data_settings(create_model("timm", name=name)).image_size
    return forward_flops("timm", size, name=name)


def print_rows(rows: Iterable[tuple[str, Row, Needs | None]], tflops: float) -> None:
    default = SUSTAINED_SHARE * PEAK_TFLOPS
    assumed = f", {SUSTAINED_SHARE:.0%} of an A100's {PEAK_TFLOPS:.0f} in bf16" if tflops == default else ""
    print("# $IMAGENET: the folder with train/ and val/. $DATA: the folder that the transfer data sets lie in.")
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
    """`needs` is null where nothing is known, its `hours` where minutes do."""
    estimate = {"estimate": True, "tflops": tflops} if need and need.hours is not None else {}
    return {"section": section, **asdict(row), "needs": need and asdict(need) | estimate}


if __name__ == "__main__":
    main()
