"""Measure the training images: shapes, values, and the mean and standard deviation of each channel.

    python scripts/measure_data.py data=folder data.root=/scans data.channels=1 data.bit_depth=16
    python scripts/measure_data.py data=table data.path=labels.csv data.channels=6 'data.value_range=[0,1]'

Takes the options of train.py (see its --help). It reads the training images; if there are more than 10,000, at most
10,000 of them, spread evenly. The last two lines are the settings data.mean and data.std, for the command line of
train.py. They are for pixels scaled to [0, 1], as data.bit_depth or data.value_range say. Images are not resized, and
each image counts the same.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # because train.py and data/ are not installed

if __name__ == "__main__":  # answers --help and mistakes before torch is imported
    from xcit.start import answer

    answer(str(Path(__file__).parents[1] / "train.py"), __doc__)

from collections import Counter
from dataclasses import dataclass, field

import hydra
import torch
from omegaconf import DictConfig
from torch import Tensor

import train
from data.about import counted
from data.crops import whole
from data.datasets import DATASETS
from train import TABLES
from xcit.command import guarded, run
from xcit.config import TrainConfig
from xcit.config.composition import read_config
from xcit.engine.progress import Progress
from xcit.errors import InputError, print_note
from xcit.preprocessing import Preprocessing

MOST_IMAGES = 10_000
MOST_SHAPES = 5


@dataclass
class Sums:
    """What is known of the images so far. mean and square are sums over images, (C,)."""

    mean: Tensor
    square: Tensor
    lowest: float = float("inf")
    highest: float = float("-inf")
    shapes: Counter[tuple[int, int]] = field(default_factory=Counter)

    def add(self, pixels: Tensor, preprocessing: Preprocessing) -> None:
        """pixels: (H, W, C), of one image."""
        low, high = preprocessing.bounds
        scaled = (pixels.double() - low) / (high - low)
        self.mean += scaled.mean((0, 1))
        self.square += scaled.square().mean((0, 1))
        self.lowest, self.highest = min(self.lowest, float(pixels.min())), max(self.highest, float(pixels.max()))
        self.shapes[pixels.shape[0], pixels.shape[1]] += 1


def measure(config: TrainConfig) -> None:
    channels = config.data.channels
    # The mean and std do not matter here: the pixels are not normalized.
    given = config.data.input_values | {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    preprocessing = Preprocessing(channels=channels, **given)
    examples = DATASETS[config.data.name](**config.data.options).train()
    step = -(-len(examples) // MOST_IMAGES)
    sums = Sums(torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64))
    with Progress() as progress:
        for index in progress.track(range(0, len(examples), step), "measuring"):
            try:
                sums.add(whole(examples[index].image, preprocessing), preprocessing)
            except InputError as error:
                print_note(f"{error}; left out")
    total = sums.shapes.total()
    if not total:
        raise InputError("none of the images can be read")
    mean = sums.mean / total
    std = (sums.square / total - mean.square()).clamp(min=0).sqrt()
    low, high = preprocessing.bounds
    print(f"{counted(total, 'image')} of {len(examples):,}, {counted(channels, 'channel')}")
    print(f"values from {sums.lowest:g} to {sums.highest:g}; {low:g} to {high:g} are scaled to [0, 1]")
    shapes = [f"{height} × {width} ({number:,})" for (height, width), number in sums.shapes.most_common(MOST_SHAPES)]
    others = len(sums.shapes) - len(shapes)
    print(f"height × width (images): {', '.join(shapes)}{f', and {others:,} others' if others else ''}")
    for key, values in (("mean", mean), ("std", std)):
        print(f"data.{key}=[{','.join(f'{value:.4f}' for value in values.tolist())}]")
    constant = [str(number) for number in range(channels) if std[number] < 5e-5]
    if constant:
        raise InputError(f"channel {', '.join(constant)}: has the same value everywhere, so it cannot be normalized")


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
@guarded
def main(raw: DictConfig) -> None:
    measure(read_config(TrainConfig, raw, TABLES))


if __name__ == "__main__":
    run(main, train.__file__)
