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
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # because data/ and scripts/ are not installed

import xcit
from data.crops import random_resized_crop
from data.datasets.folder import list_class_folders
from data.datasets.image_files import ImageFiles
from data.jpeg import read_jpeg
from data.loader import TrainLoader
from data.mixing import Mixing
from data.samplers import TrainBatches
from data.transforms import TrainTransform
from data.views.labelled_crop import RandomLabelledCrop
from scripts.loaders_in_turns import (
    CROP,
    PLAIN,
    PREPROCESSING,
    RAND_AUGMENT,
    SIZE,
    against_timm,
    cores,
    in_turns,
    print_comparison,
    repeated,
)
from xcit.command import ArgumentParser, guarded
from xcit.encoded_image import EncodedImage
from xcit.errors import InputError
from xcit.storage import write_text
from xcit.tables import show_table

USUAL, LARGE = (500, 375), (4000, 3000)
DISTINCT = 64


def main() -> None:
    arguments = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(arguments.root) if arguments.root else make_jpegs(Path(folder) / "usual", USUAL, DISTINCT)
        images = list_class_folders(root)
        if arguments.against_timm:
            large = list_class_folders(make_jpegs(Path(folder) / "large", LARGE, 4))
            found = against_timm(images, large, arguments, device)
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


if __name__ == "__main__":
    guarded(main)()
