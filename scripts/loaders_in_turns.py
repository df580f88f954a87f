"""Our loader and timm's, in turns, for scripts/benchmark_data.py."""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import simplejpeg
import torch
from rich.table import Table
from timm.data import ImageDataset, create_loader
from torch import Tensor

from data.datasets.image_files import ImageFiles
from data.examples import Example, View
from data.loader import TrainLoader, make_loader
from data.mixing import Mixing
from data.samplers import EvalBatches, TrainBatches
from data.shared_memory import SharedBuffers
from data.transforms import TrainTransform
from data.viewed_examples import ViewedExamples
from data.views.labelled_crop import RandomLabelledCrop
from xcit.encoded_image import EncodedImage
from xcit.preprocessing import Preprocessing
from xcit.tables import show_table

SIZE = 224
PREPROCESSING = Preprocessing(size=(SIZE, SIZE))
CROP: dict[str, Any] = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}
PLAIN: dict[str, Any] = CROP | {"hflip": 0.5, "color_jitter": 0.0, "rand_augment": None, "erase_prob": 0.25}
RAND_AUGMENT = PLAIN | {"rand_augment": "rand-m9-mstd0.5-inc1"}
CPU = torch.device("cpu")


def against_timm(
    usual: ImageFiles, large: ImageFiles, arguments: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """What --json writes: our loader and timm's on images of usual size, with and without RandAugment, and large."""
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


def cores() -> int:
    return len(os.sched_getaffinity(0))
