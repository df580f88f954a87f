"""Measure the speed of the input pipeline: each stage, the loader beside timm's, and the model that it feeds.

    python scripts/benchmark_data.py                                       # the stages, on generated JPEGs
    python scripts/benchmark_data.py --root /data/imagenet/train --model xcit_s12 --patch-size 16
    python scripts/benchmark_data.py --against-timm --json data_bench.json # a quarter of an hour on two cores

Without --root the script generates JPEGs of ImageNet's usual size: noise with a photograph's spectrum, 500 × 375,
quality 95. With --against-timm both sides use the same files, policy, workers and cores, and take turns in one process.
The batch size is the same, too; for large images of 4000 × 3000 it is an eighth of --batch-size. decode_only is the
speed of the same workers when they decode whole images with simplejpeg and do nothing else. The file of --json holds
{"plain": {"ours", "timm", "ratio", "lowest", "highest"}, "randaugment": {…}, "large": {…}, "decode_only": images/s,
"workers", "batch_size", "cores"}.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from rich.table import Table
from timm.data import ImageDataset, create_loader
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # because data/ is not installed

import xcit
from data.crops import random_resized_crop
from data.datasets.folder import list_class_folders
from data.datasets.image_files import ImageFiles
from data.examples import Example, View
from data.jpeg import read_jpeg
from data.loader import TrainLoader, make_loader
from data.mixing import Mixing
from data.samplers import EvalBatches, TrainBatches
from data.shared_memory import SharedBuffers
from data.transforms import TrainTransform
from data.viewed_examples import ViewedExamples
from data.views.labelled_crop import RandomLabelledCrop
from xcit.command import ArgumentParser, guarded
from xcit.encoded_image import EncodedImage
from xcit.errors import InputError
from xcit.preprocessing import Preprocessing
from xcit.storage import write_text
from xcit.tables import show_table

SIZE = 224
PREPROCESSING = Preprocessing(size=(SIZE, SIZE))
CROP: dict[str, Any] = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}
PLAIN: dict[str, Any] = CROP | {"hflip": 0.5, "color_jitter": 0.0, "rand_augment": None, "erase_prob": 0.25}
RAND_AUGMENT = PLAIN | {"rand_augment": "rand-m9-mstd0.5-inc1"}
USUAL, LARGE = (500, 375), (4000, 3000)
DISTINCT = 64
CPU = torch.device("cpu")


def main() -> None:
    arguments = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(arguments.root) if arguments.root else make_jpegs(Path(folder) / "usual", USUAL, DISTINCT)
        images = list_class_folders(root)
        if arguments.against_timm:
            found = against_timm(images, Path(folder), arguments, device)
            print_comparison(found)
            if arguments.json:
                write_text(Path(arguments.json), json.dumps(found, indent=1) + "\n")
        else:
            stages(images, arguments, device)


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--root", help="a folder that holds a folder of images for each class; default: generated JPEGs"
    )
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default: 2)")
    parser.add_argument("--batch-size", type=int, default=64, help="images of a batch (default: 64)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side (default: 7)")
    parser.add_argument("--batches", type=int, default=12, help="batches of a turn (default: 12)")
    parser.add_argument("--against-timm", action="store_true", help="compare with timm's loader")
    parser.add_argument("--json", help="the file for the comparison")
    parser.add_argument("--model", default="xcit_s12", help="the model whose training step is compared with the loader")
    parser.add_argument("--patch-size", type=int, default=16, help="the model's patch size (default: 16)")
    arguments = parser.parse_args()
    for name in ("batch_size", "rounds", "batches"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name.replace('_', '-')}={getattr(arguments, name)}: must be at least 1")
    if arguments.workers < 0:
        raise InputError(f"--workers={arguments.workers}: must be 0 or more")
    table = Path(arguments.json or "none").absolute()
    if table.is_dir() or not table.parent.is_dir():
        raise InputError(f"--json={arguments.json}: must be a file in a folder that exists")
    return arguments


def make_jpegs(root: Path, size: tuple[int, int], count: int) -> Path:
    """Write JPEGs of quality 95 to one class folder. Like a photograph, one of 500 × 375 takes 95 kB."""
    (root / "noise").mkdir(parents=True)
    width, height = size
    for number in range(count):
        random = np.random.default_rng(number)
        pixels = random.normal(scale=5, size=(height, width, 3))
        for grain in (2, 4, 8, 16, 32, 64, 128):  # coarser noise is stronger: a spectrum of 1 / f
            shape = (3, height // grain + 2, width // grain + 2)
            for channel, values in enumerate(random.normal(scale=4 * grain**0.5, size=shape)):
                coarse = Image.fromarray(values.astype(np.float32))
                pixels[..., channel] += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
        image = Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8))
        image.save(root / "noise" / f"{number:04}.jpg", quality=95)
    return root


# Compare with timm.


def against_timm(
    usual: ImageFiles, folder: Path, arguments: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    large = list_class_folders(make_jpegs(folder / "large", LARGE, 4))
    images = arguments.batches * arguments.batch_size
    few = argparse.Namespace(**vars(arguments) | {"batch_size": max(1, arguments.batch_size // 8)})
    viewed = ViewedExamples(repeated(usual, images), DecodeOnly(), replace=False)
    order = EvalBatches(images, arguments.batch_size)
    decoding = make_loader(viewed, order, arguments.workers, CPU, keep_workers=True)
    plain = compare(repeated(usual, images), PLAIN, arguments, device, decode_only=decoding)
    return {
        "decode_only": plain.pop("decode_only"),
        "plain": plain,
        "randaugment": compare(repeated(usual, images), RAND_AUGMENT, arguments, device),
        "large": compare(repeated(large, arguments.batches * few.batch_size), PLAIN, few, device),
        "workers": arguments.workers,
        "batch_size": arguments.batch_size,
        "cores": cores(),
    }


def compare(
    images: ImageFiles,
    policy: dict[str, Any],
    arguments: argparse.Namespace,
    device: torch.device,
    **others: Iterable[Any],
) -> dict[str, float]:
    """Median images/s of ours, timm's and the other loaders, and the ratio of ours to timm's over the rounds."""
    mixing = Mixing(2, mixup=0, cutmix=0, switch_prob=0.5, label_smoothing=0.1)
    ours = TrainLoader(
        images,
        [RandomLabelledCrop(TrainTransform(PREPROCESSING, **policy), mixing)],
        TrainBatches(len(images), arguments.batch_size, seed=0),
        epochs=1,
        workers=arguments.workers,
        device=device,
    )
    theirs = timms(images, policy, arguments, device)
    epochs = iter(range(10**6))
    sides: dict[str, Callable[[], Iterable[Any]]] = {"ours": lambda: ours.epoch(next(epochs)), "timm": lambda: theirs}
    sides |= {name: partial(iter, batches) for name, batches in others.items()}
    found = in_turns(sides, len(images), arguments.rounds)
    ratios = [a / b for a, b in zip(found["ours"], found["timm"], strict=True)]
    return {name: statistics.median(speeds) for name, speeds in found.items()} | {
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def timms(
    images: ImageFiles, policy: dict[str, Any], arguments: argparse.Namespace, device: torch.device
) -> Iterable[Any]:
    """timm's loader with the same policy, made as in timm's training script."""
    dataset = ImageDataset(str(Path(images.samples[0][0]).parents[1]))
    dataset.reader.samples = images.samples
    return create_loader(
        dataset,
        input_size=(3, SIZE, SIZE),
        batch_size=arguments.batch_size,
        is_training=True,
        scale=policy["scale"],
        ratio=policy["ratio"],
        hflip=policy["hflip"],
        color_jitter=policy["color_jitter"] or None,
        auto_augment=policy["rand_augment"],
        re_prob=policy["erase_prob"],
        re_mode="pixel",
        interpolation="bicubic",
        num_workers=arguments.workers,
        device=device,
        persistent_workers=arguments.workers > 0,
    )


class DecodeOnly(View):
    """A view that decodes the whole image and returns a dummy."""

    def __init__(self) -> None:
        self.buffers = SharedBuffers()

    def sample(self, example: Example) -> Tensor:
        assert isinstance(example.image, EncodedImage)
        simplejpeg.decode_jpeg(example.image.data)
        return torch.zeros(1, 1, 3, dtype=torch.uint8)

    def collate(self, samples: Sequence[Tensor]) -> Tensor:
        return self.buffers.stack(samples)

    def to_device(self, collated: Tensor, *_: Any) -> Tensor:
        return collated


def in_turns(sides: dict[str, Callable[[], Iterable[Any]]], images: int, rounds: int) -> dict[str, list[float]]:
    """Images/s of each side in each round. The first round starts the workers and does not count."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, batches in sides.items():
            started = time.perf_counter()
            for _ in batches():
                pass
            if number:
                found[name].append(images / (time.perf_counter() - started))
        print(f"round {number} of {rounds}", end="\r", file=sys.stderr, flush=True)
    return found


def repeated(images: ImageFiles, count: int) -> ImageFiles:
    """`count` samples: the same files, repeated as often as needed."""
    times = -(-count // len(images))
    return ImageFiles.from_samples((images.samples * times)[:count], images.classes)


def print_comparison(found: dict[str, Any]) -> None:
    table = Table(title=f"images/s, {found['workers']} workers on {found['cores']} cores, batch {found['batch_size']}")
    for column in ("", "ours", "timm", "ratio", "range", "share of decode only"):
        table.add_column(column, justify="right" if column else "left")
    for name in ("plain", "randaugment", "large"):
        row = found[name]
        share = "" if name == "large" else f"{100 * row['ours'] / found['decode_only']:.0f} %"
        numbers = (f"{row['ours']:,.0f}", f"{row['timm']:,.0f}", f"{row['ratio']:.2f}")
        table.add_row(name, *numbers, f"{row['lowest']:.2f}–{row['highest']:.2f}", share)
    table.add_row("decode only", f"{found['decode_only']:,.0f}")
    show_table(table)


# Measure the stages.


def stages(images: ImageFiles, arguments: argparse.Namespace, device: torch.device) -> None:
    """Print images/s of each stage on one core, of the whole loader, and of the model's training step."""
    # Each stage alone, on one core.
    torch.set_num_threads(1)
    transform = TrainTransform(PREPROCESSING, **RAND_AUGMENT)
    without_color = TrainTransform(PREPROCESSING, **PLAIN)
    paths = [path for path, _ in images.samples[:DISTINCT]]
    encoded = [EncodedImage(Path(path).read_bytes(), path) for path in paths]
    pixels = torch.stack([without_color(image) for image in encoded])
    jpegs = [jpeg for jpeg in map(read_jpeg, encoded) if jpeg is not None]
    table = Table(title="images/s")
    table.add_column("stage")
    table.add_column("one core", justify="right")
    rows: dict[str, float] = {"read": rate(lambda: [Path(path).read_bytes() for path in paths], len(paths))}
    if jpegs:
        rows["decode, whole"] = rate(lambda: [jpeg.decode_rows(jpeg.height, 1) for jpeg in jpegs], len(jpegs))
    rows["decode, crop and resize"] = rate(
        lambda: [random_resized_crop(image, PREPROCESSING, **CROP) for image in encoded], len(encoded)
    )
    rows["the same with RandAugment"] = rate(lambda: [transform(image) for image in encoded], len(encoded))
    rows["on the device: normalize, erase"] = rate(
        lambda: transform.on_device(pixels.to(device), range(len(pixels))), len(pixels)
    )
    for name, speed in rows.items():
        table.add_row(name, f"{speed:,.0f}")
    # The loader and the model, on all cores.
    torch.set_num_threads(cores())
    loader = whole_loader(images, transform, arguments, device)
    data_speed = statistics.median(in_turns({"ours": loader}, arguments.batches * arguments.batch_size, 3)["ours"])
    model_speed = training_speed(arguments.model, arguments.patch_size, arguments.batch_size, device)
    table.add_section()
    table.add_row(f"the loader, {arguments.workers} workers", f"{data_speed:,.0f}")
    table.add_row(f"a training step of {arguments.model}/{arguments.patch_size}", f"{model_speed:,.0f}")
    show_table(table)
    slower, faster = ("data", "model") if data_speed < model_speed else ("model", "data")
    print(f"the {slower} limits the run: the {faster} alone would be {ratio(data_speed, model_speed):.1f} × as fast")


def ratio(a: float, b: float) -> float:
    return max(a, b) / min(a, b)


def whole_loader(
    images: ImageFiles, transform: TrainTransform, arguments: argparse.Namespace, device: torch.device
) -> Callable[[], Iterable[Any]]:
    images = repeated(images, arguments.batches * arguments.batch_size)
    mixing = Mixing(2, mixup=0.8, cutmix=1.0, switch_prob=0.5, label_smoothing=0.1)
    loader = TrainLoader(
        images,
        [RandomLabelledCrop(transform, mixing)],
        TrainBatches(len(images), arguments.batch_size, seed=0),
        epochs=1,
        workers=arguments.workers,
        device=device,
    )
    return lambda: loader.epoch(0)


def training_speed(name: str, patch_size: int, batch_size: int, device: torch.device) -> float:
    """Images/s of a model's training step, on random images."""
    model = xcit.create_model(name, patch_size=patch_size).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images = torch.randn(min(batch_size, 8) if device.type == "cpu" else batch_size, 3, SIZE, SIZE, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return rate(step, len(images))


def rate(step: Callable[[], object], images: int) -> float:
    """Images/s of the best of three turns, because other processes only make a turn slower."""
    step()
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        step()
        best = max(best, images / (time.perf_counter() - started))
    return best


def cores() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    guarded(main)()
