"""Predict images with a trained model: classes, labels, numbers, the objects in them, or the class of each pixel.

    python scripts/predict.py photo.jpg checkpoint=runs/mine
    python scripts/predict.py '~/photos/**/*.jpg' checkpoint=runs/mine format=csv,parquet
    python scripts/predict.py ~/photos checkpoint=runs/coco resolution=800 score=0.7 run_dir=found
    python scripts/predict.py aerial.tif checkpoint=runs/coco tile=1024           # an image that is too large
    python scripts/predict.py ~/photos checkpoint=xcit_small_12_p8_384_dist overlays=true

Takes image files, folders, which are read with their subfolders, and patterns. An image that cannot be read is left
out, and a line names it. The checkpoint is a run folder, a file in one, or the name of published weights. An option
may be written as key=value or as --key value.

Writes to runs/predict/TIME, or to run_dir=:

    predictions.json    classify: for each file its most likely classes; segment: the share of each class;
                        detect: COCO's format, with scores, and masks as RLE; with format=jsonl, csv or parquet
                        predictions.jsonl, predictions.csv or predictions.parquet instead
    contact_sheet.png   up to 60 of the images with what was predicted
    overlays/           the predictions, drawn on the images, as PNG; for detect and segment, or with overlays=true
    masks/              segment: the class of each pixel, as PNG with 8 bits, or 16 above 256 classes

Names of files in there are relative to the given folder, or to the one that holds all that was given.

With tile= a larger image is cut into squares at its full size, which overlap, and each is predicted by itself. See
docs/predict.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # because data/ and scripts/ are not installed

if __name__ == "__main__":  # answers --help and mistakes before torch is imported
    from scripts.options import of_predict
    from xcit.start import answer_options

    answer_options(lambda: of_predict(__doc__, sys.argv[1:]))

import argparse
import os
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from types import FrameType
from typing import Any

import torch
import yaml

from data.about import counted
from data.datasets.listing import skipped_below
from scripts.embed import files_of
from scripts.options import of_predict
from scripts.prediction_files import FEW, Output
from scripts.prediction_tables import formats_of
from xcit.command import guarded
from xcit.command.printing import print_notices
from xcit.device import default_device, is_out_of_memory
from xcit.encoded_image import MAX_PIXELS, EncodedImage
from xcit.engine.progress import Progress
from xcit.engine.run_folder import RunFolder, new_path
from xcit.errors import InputError, print_note
from xcit.prediction.pictures import ContactSheet
from xcit.prediction.predictor import Item, Prediction, Predictor
from xcit.prediction.predictors import PREDICTORS, Settings
from xcit.prediction.read_ahead import read_ahead
from xcit.signals import SIGNALS, Stopped, stop_at_signals
from xcit.tasks.load import LoadedTask, load_task

DENSE = ("detect", "segment")
"""Tasks that see whole images, one at a time."""


@guarded
def main() -> None:
    print_notices()
    arguments = of_predict(__doc__, sys.argv[1:])
    arguments.max_pixels = arguments.max_pixels or MAX_PIXELS
    formats = formats_of(arguments.format)
    folder = RunFolder(new_path(arguments.run_dir, "predict"))
    folder.require_free()
    device = default_device()
    with Progress() as progress, stop_at_signals(), ExitStack() as at_end:
        progress.begin("listing the images")
        root, paths = listed(arguments.images)
        for given in filter(Path.is_dir, arguments.images):
            if skipped := str(skipped_below(given.absolute())):
                print_note(f"{given}: skipped {skipped}")

        progress.begin(f"reading {arguments.checkpoint}")
        loaded = load_task(arguments.checkpoint, arguments.weights)
        if loaded.name not in PREDICTORS:
            raise InputError(
                f"checkpoint={arguments.checkpoint}: predicts nothing, since it was trained with task={loaded.name}; "
                "scripts/embed.py writes its features"
            )
        predictor = PREDICTORS[loaded.name](loaded, settings_of(arguments, loaded, device))

        # The folder is made with the first prediction, so that nothing is written if there is none.
        at_end.callback(folder.close)
        asked = {**vars(arguments), "images": [str(path) for path in arguments.images]}
        overlays = loaded.name in DENSE if arguments.overlays is None else arguments.overlays == "true"
        sheet = ContactSheet(len(paths)) if arguments.contact_sheet == "true" else None
        few = len(paths) <= FEW
        output = Output(
            folder, yaml.safe_dump(asked), predictor, formats=formats, overlays=overlays, sheet=sheet, few=few
        )
        step = progress.begin("predicting", len(paths))
        batch_size = arguments.batch_size if predictor.together else 1

        def read(numbered: tuple[int, str]) -> Item | None:
            number, path = numbered
            on_sheet = sheet is not None and sheet.takes(number)
            name = os.path.relpath(absolute(path), root)
            item = prepared(predictor, name, path, arguments.max_pixels, shown=overlays or on_sheet)
            return item and item._replace(on_sheet=on_sheet)

        items = read_ahead(enumerate(paths), read, batch_size if predictor.together else 0)
        with noted_signals() as received:
            while not received and (batch := list(islice(items, batch_size))):
                readable = [item for item in batch if item]
                predicted = predict(predictor, readable)
                for item, prediction in zip(readable[: len(predicted)], predicted, strict=True):
                    output.add(item, prediction)
                step.advance(len(batch))
            # Without another readable image, nothing was stopped.
            stopped = bool(received) and any(items)
            progress.end()
            if output.images:
                output.finish()
        if stopped:
            raise Stopped(
                f"{received[0]}; {folder.path}: predictions of {output.images} of {counted(len(paths), 'image')}"
            )
        if not output.images:
            raise InputError("none of the images can be predicted")
    left_out = len(paths) - output.images
    rest = f", without {counted(left_out, 'image')} that cannot be read or predicted" if left_out else ""
    print(f"{folder.path}: predictions of {counted(output.images, 'image')}{rest}")


@contextmanager
def noted_signals() -> Iterator[list[str]]:
    """In this context signals do not interrupt, so that predictions.json is written. Their names are yielded."""
    received: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        if len(received) == 1:
            os.write(2, f"{received[0]}: stopping after the images at hand\n".encode())  # print() may be interrupted

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def settings_of(arguments: argparse.Namespace, loaded: LoadedTask, device: torch.device) -> Settings:
    if arguments.tile and loaded.name not in DENSE:
        print_note(f"tile={arguments.tile}: has no effect on task={loaded.name}, which sees each image at one size")
    return Settings(
        device,
        arguments.resolution,
        top=arguments.top,
        score=arguments.score,
        tile=arguments.tile,
        overlap=arguments.overlap,
    )


def listed(given: Sequence[Path]) -> tuple[str, list[str]]:
    """The folder that holds all that was given, and the path of each image: those of a folder or pattern are sorted."""
    found = [sorted(files_of(one), key=by_folder_and_number) for one in given]
    folders = {
        one if one.is_dir() else Path(path).parent for one, paths in zip(given, found, strict=True) for path in paths
    }
    # An image may be given twice.
    paths = {absolute(path): path for paths in found for path in paths}
    return os.path.commonpath([absolute(folder) for folder in folders]), list(paths.values())


def by_folder_and_number(path: str) -> tuple[Any, ...]:
    """The key that sorts paths by folder, then by name, and numbers in them by their value: 2 before 10."""
    parts = [re.split(r"(\d+)", text) for text in os.path.split(path)]
    return *([int(part) if part.isdecimal() else part for part in text] for text in parts), path


def absolute(path: str | Path) -> str:
    """Without "..". Links are not followed: they keep their names."""
    return os.path.normpath(Path(path).absolute())


def prepared(predictor: Predictor, name: str, path: str, max_pixels: int, *, shown: bool) -> Item | None:
    """The image with what the model needs of it; None, and a line, if it cannot be read."""
    try:
        return predictor.prepare(name, EncodedImage(Path(path).read_bytes(), path, max_pixels), shown)
    except OSError as error:
        print_note(f"{path}: cannot be read ({error.strerror}); left out")
    except InputError as error:
        print_note(f"{'' if str(error).startswith(path) else f'{path}: '}{error}; left out")
    return None


@torch.inference_mode()
def predict(predictor: Predictor, items: Sequence[Item]) -> list[Prediction]:
    """The predictions of a batch; none, and a line, if they do not fit into memory."""
    try:
        return predictor.predict(items) if items else []
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    torch.cuda.empty_cache()  # does nothing without a GPU
    print_note(f"{predictor.too_large(items)}; left out")
    return []


if __name__ == "__main__":
    main()
