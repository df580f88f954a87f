"""What train.py and eval.py say about the data before they begin."""

import warnings
from collections.abc import Mapping
from typing import Any

from xcit.errors import InputError, Notice

from .about import About, Skipped, counted
from .examples import HELD_OUT, NONE_HELD_OUT, VAL_FRACTION, Examples

FEW_IMAGES = 3_000
"""Below this number of training images, a run from scratch prints a note."""
PHOTOGRAPHS = 64
"""The smallest image size in pixels for which it does."""


def data_facts(splits: Mapping[str, Examples]) -> list[tuple[str, str]]:
    """Describe the data in one line, and what is skipped, mended or left out in further ones, each as (label, text).

    Args:
        splits: What the images of a split are for ("training", "validation") → the split.
    """
    abouts = [split.about for split in splits.values()]
    sources = [source_of(about) for about in abouts]
    shared = sources[0] if len(set(sources)) == 1 else ""
    classes = next(iter(splits.values())).classes
    parts = []
    for (purpose, split), source in zip(splits.items(), sources, strict=True):
        lacks_some = split.num_present is not None and split.num_present < len(classes) and len(splits) > 1
        of_classes = f" (of {counted(split.num_present or 0, 'class', 'classes')})" if lacks_some else ""
        parts.append(counted(len(split), f"{purpose} image") + of_classes + ("" if shared else source))
    facts = [("data", f"{' and '.join(parts)}{in_classes(splits, len(classes))}{shared}")]
    # Two splits of one folder have counted the same files.
    by_folder = {folder: skipped for about in abouts for folder, skipped in about.skipped.items()}
    if skipped := str(sum(by_folder.values(), Skipped())):
        facts.append(("skipped", skipped))
    notes = [f"{purpose} images: {note}" for purpose, split in splits.items() for note in split.about.notes]
    return facts + [("" if number else "mended", note) for number, note in enumerate(notes)]


def in_classes(splits: Mapping[str, Examples], num_classes: int) -> str:
    """As " in 10 classes"; of a single split that lacks classes " in 8 of the 10 classes"."""
    if not num_classes:
        return ""
    present = [split.num_present for split in splits.values()]
    if len(present) == 1 and present[0] is not None and present[0] < num_classes:
        return f" in {present[0]:,} of the {counted(num_classes, 'class', 'classes')}"
    return f" in {counted(num_classes, 'class', 'classes')}"


def large_batch_notes(num_images: int, global_batch_size: int) -> list[str]:
    """A note for a run whose global batch is larger than the training split."""
    if global_batch_size <= num_images:
        return []
    return [
        f"train.global_batch_size={global_batch_size}: is more than the {counted(num_images, 'training image')}, so "
        "each epoch is one update, in which images repeat; lower it, or give auto"
    ]


def few_images_notes(examples: Examples, image_size: int, layer_decay: float | None) -> list[str]:
    """A note for a run that trains on few photographs from scratch. Smaller pictures, such as digits, are simpler.

    Args:
        image_size: In pixels.
        layer_decay: The recipe's; only recipes for fine-tuning have one.
    """
    if len(examples) >= FEW_IMAGES or image_size < PHOTOGRAPHS:
        return []
    is_advised = layer_decay and examples.target_kind == "class"
    other = "; for training from scratch, recipe=folder_from_scratch learns faster" if is_advised else ""
    return [
        f"training from scratch on {len(examples):,} images: a good model needs some thousands, or pretrained "
        f"weights (pretrained=){other}"
    ]


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
