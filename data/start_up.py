"""What train.py and eval.py say about the data before they begin."""

import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from xcit.encoded_image import EncodedImage
from xcit.errors import InputError, Notice
from xcit.preprocessing import Preprocessing

from .about import About, Skipped, counted
from .examples import DIGEST, HELD_OUT, NONE_HELD_OUT, VAL_FRACTION, Examples

FEW_IMAGES = 3_000
"""Below this number of training images, a run from scratch prints a note."""
LOOKED_AT = 8
"""Number of images whose headers are read before training."""
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
    names = what_classes_are(splits)
    parts = []
    for (purpose, split), source in zip(splits.items(), sources, strict=True):
        lacks_some = split.num_present is not None and split.num_present < len(classes) and len(splits) > 1
        of_classes = f" (of {counted(split.num_present or 0, *names)})" if lacks_some else ""
        parts.append(counted(len(split), f"{purpose} image") + of_classes + ("" if shared else source))
    facts = [("data", f"{' and '.join(parts)}{in_classes(splits, len(classes))}{shared}")]
    # Two splits of one folder have counted the same files.
    by_folder = {folder: skipped for about in abouts for folder, skipped in about.skipped.items()}
    if skipped := str(sum(by_folder.values(), Skipped())):
        facts.append(("skipped", skipped))
    notes = [f"{purpose} images: {note}" for purpose, split in splits.items() for note in split.about.notes]
    return facts + [("" if number else "mended", note) for number, note in enumerate(notes)]


def what_classes_are(splits: Mapping[str, Examples]) -> tuple[str, str]:
    """What `Examples.classes` are called, one of them and several."""
    of_kind = {"classes": ("label", "labels"), "values": ("value", "values")}
    return of_kind.get(next(iter(splits.values())).target_kind, ("class", "classes"))


def in_classes(splits: Mapping[str, Examples], num_classes: int) -> str:
    """As " in 10 classes"; of a single split that lacks classes " in 8 of the 10 classes"."""
    if not num_classes:
        return ""
    present = [split.num_present for split in splits.values()]
    classes = counted(num_classes, *what_classes_are(splits))
    if len(present) == 1 and present[0] is not None and present[0] < num_classes:
        return f" in {present[0]:,} of the {classes}"
    return f" in {classes}"


def data_notes(examples: Examples, preprocessing: Preprocessing, global_batch_size: int) -> list[str]:
    """Notes on the training images and their number."""
    return bit_depth_notes(examples, preprocessing) + large_batch_notes(len(examples), global_batch_size)


def large_batch_notes(num_images: int, global_batch_size: int) -> list[str]:
    """A note for a run whose global batch is larger than the training split."""
    if global_batch_size <= num_images:
        return []
    return [
        f"train.global_batch_size={global_batch_size}: is more than the {counted(num_images, 'training image')}, so "
        "each epoch is one update, in which images repeat; lower it, or give auto"
    ]


def bit_depth_notes(examples: Examples, preprocessing: Preprocessing) -> list[str]:
    """A note if images have more bits than are used. It looks at the headers of a few images."""
    if preprocessing.bit_depth > 8 or preprocessing.value_range:
        return []
    for index in range(0, len(examples), max(1, len(examples) // LOOKED_AT)):
        image = examples[index].image
        with suppress(InputError):  # a broken image, which is reported when it is used
            if isinstance(image, EncodedImage) and image.has_more_than_8_bits():
                return [
                    f"{image.origin}: has more than 8 bits in a channel, and 8 are used; "
                    "data.bit_depth=16 uses all, with images that have them"
                ]
    return []


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
    elif before.get(HELD_OUT) != now[HELD_OUT] or before.get(DIGEST) != now.get(DIGEST):
        reason = f"the run held out other images for validation than those that are held out {now[HELD_OUT]} now"
    elif now.get(VAL_FRACTION, 0) > before.get(VAL_FRACTION, 0):
        reason = f"{VAL_FRACTION} was {before[VAL_FRACTION]} in training and is {now[VAL_FRACTION]} now"
    else:
        return
    if within_epoch:
        raise InputError(f"data: {reason}, so the run cannot continue within an epoch; begin a new run")
    warnings.warn(f"data: {reason}, so the run was trained on some of them: its metrics are too good", Notice, 2)
