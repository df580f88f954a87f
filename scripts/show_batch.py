"""Save the first batch of a training run as a picture: augmented, mixed and erased, as the model sees it.

    python scripts/show_batch.py                                                     # the digits
    python scripts/show_batch.py data=imagenet data.root=/path augment=three_augment

Takes the options of train.py (see its --help). Writes batch.png to the current folder, or to run_dir=, with at most 64
images, and says how many images and classes there are. The class of an image is below it. A mixed image has the two
classes with the largest shares of its target.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # because train.py and data/ are not installed

if __name__ == "__main__":  # answers --help and mistakes before torch is imported
    from xcit.start import answer

    answer(str(Path(__file__).parents[1] / "train.py"), __doc__)

import math
from dataclasses import replace

import hydra
from omegaconf import DictConfig
from PIL import Image, ImageDraw
from torch import Tensor

import train
from data.datasets import DATASETS
from data.start_up import data_facts
from data.views.labelled_crop import LabelledImages
from scripts.save_picture import save_picture
from train import TABLES, check, train_batches
from xcit import summary
from xcit.command import guarded, run
from xcit.config import TrainConfig
from xcit.config.composition import read_config, require_target
from xcit.engine import distributed
from xcit.engine.length import Length
from xcit.errors import InputError
from xcit.evaluation.drawing import font_of
from xcit.models.dry_run import dry_run
from xcit.prediction.pictures import as_rgb
from xcit.preprocessing import Preprocessing
from xcit.tasks import TASKS

MOST = 64
MOST_LINES = 3
SIDE = 128
"""Smallest side of an image on the sheet, in pixels. Smaller images are enlarged by a whole factor."""
GAP, LINE = 10, 18
SHOWN = Preprocessing()
"""Of the pixels on the sheet: 8 bits."""
FONT = font_of(14)


def show(given: TrainConfig) -> None:
    with distributed.session() as device:
        check(given, device)
        source = DATASETS[given.data.name](**given.data.options)
        examples = source.train()
        config = given.scaled(len(examples), distributed.world_size())
        require_target(config.task.name, TASKS[config.task.name].target_kinds, config.data.name, examples.target_kind)

        # One batch needs no workers. Workers would also load the next batches, which are not used.
        alone = config.model_copy(update={"data": config.data.model_copy(update={"workers": 0})})
        of_model = Preprocessing.of_model(dry_run(config.model.entry, config.model_options, {}))
        preprocessing = replace(of_model, **config.data.input_values).at(config.data.size)
        length = Length(config.train.epochs, config.train.updates)
        batch = next(train_batches(alone, examples, preprocessing, length, device).epoch(0))
        if not isinstance(batch, LabelledImages):
            raise InputError(
                f"task={config.task.name}: learns from the view {TASKS[config.task.name].view}; "
                "only batches of images with class probabilities can be drawn"
            )

        # Draw the pictures as the model gets them, with their targets as captions.
        smoothed = config.augment.options.get("label_smoothing", 0.0) / len(examples.classes)
        targets = batch.targets[:MOST].cpu()
        if examples.target_kind == "class":
            captions = [caption(target, examples.classes, smoothed) for target in targets]
        else:
            captions = [caption_of_numbers(target, examples.classes) for target in targets]
        pictures = [as_rgb(pixels.numpy(), SHOWN) for pixels in preprocessing.denormalize(batch.images[:MOST])]
        if distributed.is_main():
            sheet = draw(pictures, captions)
            path = save_picture(config.run_dir, "batch.png", lambda file: sheet.save(file, "PNG"))
            summary.say(data_facts({"training": examples, "validation": source.val(examples.classes)}))
            print(f"{path}: {len(captions)} of the {len(batch.images)} images of the first batch")


def caption(target: Tensor, classes: list[str], smoothed: float) -> list[tuple[str, str]]:
    """(class, share) for each line: the only class, with an empty share, or the two classes with the largest shares.

    target: (K,), the probabilities of the classes. smoothed: the share that label smoothing gives to every class.
    """
    shares, numbers = target.topk(min(2, len(classes)))
    names = [" ".join(classes[number].encode(errors="replace").decode().split()) for number in numbers.tolist()]
    if len(names) < 2 or shares[1] - smoothed < 0.005:
        return [(names[0], "")]
    return [(name, f": {share:.0%}") for name, share in zip(names, shares.tolist(), strict=True)]


def caption_of_numbers(target: Tensor, names: list[str]) -> list[tuple[str, str]]:
    """(name, number) for each line: the first labels or values that are known and not 0.

    target: (K,), NaN where one is unknown.
    """
    lines = [(name, f": {value:.3g}") for name, value in zip(names, target.nan_to_num().tolist(), strict=True) if value]
    return lines[:MOST_LINES] or [("none", "")]


def draw(pictures: list[Image.Image], captions: list[list[tuple[str, str]]]) -> Image.Image:
    """Draw the sheet: rows of pictures, each with the lines of its caption below."""
    scale = max(1, math.ceil(SIDE / min(pictures[0].size)))
    wide, high = (scale * length for length in pictures[0].size)
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = wide + GAP, high + GAP + LINE * max(map(len, captions))
    sheet = Image.new("RGB", (GAP + columns * width, GAP + rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (picture, lines) in enumerate(zip(pictures, captions, strict=True)):
        left, top = GAP + number % columns * width, GAP + number // columns * height
        sheet.paste(picture.resize((wide, high), Image.Resampling.NEAREST), (left, top))
        for line, (name, share) in enumerate(lines):
            text = shortened(name, wide - FONT.getlength(share)) + share
            pen.text((left, top + high + LINE * line + 1), text, "black", FONT)
    return sheet


def shortened(text: str, width: float) -> str:
    """The text, cut to a width in pixels."""
    if FONT.getlength(text) <= width:
        return text
    while text and FONT.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
@guarded
def main(raw: DictConfig) -> None:
    show(read_config(TrainConfig, raw, TABLES))


if __name__ == "__main__":
    run(main, train.__file__)
