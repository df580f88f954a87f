"""What train.py and eval.py say about the data before they begin."""

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from xcit.errors import InputError, Notice

from .about import About, Skipped, counted
from .examples import HELD_OUT, NONE_HELD_OUT, VAL_FRACTION, Examples

FEW_IMAGES = 3_000
"""Below this number of training images, a run from scratch prints a note."""
PHOTOGRAPHS = 64
"""The smallest image size in pixels for which it does."""


def start_up_lines(splits: Mapping[str, Examples]) -> list[str]:
    """Describe the data in one line, and what is skipped in another one.

    Args:
        splits: What the images of a split are for ("training", "validation") → the split.
    """
    abouts = [split.about for split in splits.values()]
    sources = [source_of(about) for about in abouts]
    shared = sources[0] if len(set(sources)) == 1 else ""
    parts = [
        counted(len(split), f"{purpose} image") + ("" if shared else source)
        for (purpose, split), source in zip(splits.items(), sources, strict=True)
    ]
    classes = next(iter(splits.values())).classes
    of_classes = f" in {counted(len(classes), 'class', 'classes')}" if classes else ""
    lines = [f"data: {' and '.join(parts)}{of_classes}{shared}"]
    # Two splits of one folder have counted the same files.
    by_folder = {folder: skipped for about in abouts for folder, skipped in about.skipped.items()}
    if skipped := str(sum(by_folder.values(), Skipped())):
        lines.append(f"data: skipped {skipped}")
    return lines


def few_images_lines(num_images: int, image_size: int, layer_decay: float | None) -> list[str]:
    """A note for a run that trains on few photographs from scratch. Smaller pictures, such as digits, are simpler.

    Args:
        image_size: In pixels.
        layer_decay: The recipe's; only recipes for fine-tuning have one.
    """
    if num_images >= FEW_IMAGES or image_size < PHOTOGRAPHS:
        return []
    other = "; for training from scratch, recipe=folder_from_scratch learns faster" if layer_decay else ""
    return [
        f"note: training from scratch on {num_images:,} images: a good model needs some thousands, or pretrained "
        f"weights (pretrained=){other}"
    ]


def say(lines: Sequence[str], *, shown: bool) -> None:
    """Print lines where progress is printed. shown: whether this process is to print."""
    for line in lines if shown else []:
        print(line, file=sys.stderr, flush=True)


def source_of(about: About) -> str:
    """As " from /photos (held out by file name)"."""
    return (f" from {about.folder}" if about.folder else "") + (f" ({about.choice})" if about.choice else "")


def warn_of_other_split(
    before: Mapping[str, Any], examples: Examples, *, same_data: bool = True, within_epoch: bool = False
) -> None:
    """Warn if a run was trained on some of these validation images.

    Args:
        before: `Examples.order` of the run, from its checkpoint.
        examples: The validation images.
        same_data: Whether they are of the folder that the run was trained on.
        within_epoch: Whether the run is to continue within an epoch. Then it needs the same training images.

    Raises:
        InputError: The training images are others than before, and the run is to continue within an epoch.
    """
    now = examples.order
    if not same_data or HELD_OUT not in now:
        return
    if now[HELD_OUT] == NONE_HELD_OUT:
        reason = "all images of the folder are evaluated"
    elif HELD_OUT not in before:
        reason = f"the run held out other images for validation than those that are held out {now[HELD_OUT]} now"
    elif now[VAL_FRACTION] > before[VAL_FRACTION]:
        reason = f"{VAL_FRACTION} was {before[VAL_FRACTION]} in training and is {now[VAL_FRACTION]} now"
    else:
        return
    if within_epoch:
        raise InputError(f"data: {reason}, so the run cannot continue within an epoch; begin a new run")
    warnings.warn(f"data: {reason}, so the run was trained on some of them: its metrics are too good", Notice, 2)
