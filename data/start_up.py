"""What train.py and eval.py say about the data and check before they begin."""

import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import torch

from xcit.errors import InputError, Notice

from .about import About, Skipped, counted
from .encoded_image import BrokenImageError
from .examples import HELD_OUT, NONE_HELD_OUT, VAL_FRACTION, Example, Examples, View
from .loader import EvalLoader, batches_of, make_loader


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


LOOK_SECONDS = 5.0
"""The time for a look through the validation images before training, if there are more than ALWAYS_DECODED."""
ALWAYS_DECODED = 64
"""The number of images that each process decodes, however long it takes."""
DECODED_AT_ONCE = 4
"""Images of one batch of this look: few, so that it ends soon after its time."""


class Discarded(View):
    """A view that makes samples as another one does, and drops them."""

    def __init__(self, view: View) -> None:
        self.view = view

    def sample(self, example: Example) -> None:
        self.view.sample(example)

    def collate(self, samples: Sequence[None]) -> int:
        return len(samples)

    def to_device(self, *_: object) -> None:
        """Not called: the samples are dropped in the workers."""


def look_through(validation: EvalLoader, seconds: float = LOOK_SECONDS) -> tuple[int, str | None]:
    """Decode this process's validation images before training: ALWAYS_DECODED, and more as the time allows.

    Otherwise a broken image would stop the run at the end of its first epoch.

    Returns:
        The number of images that were decoded, and the error if there was one.
    """
    if validation.viewed.examples.decoded_before:
        return len(validation.batches.own), None
    viewed = copy(validation.viewed)
    viewed.view = Discarded(viewed.view)
    batches = copy(validation.batches)
    batches.batch_size = DECODED_AT_ONCE
    loader = make_loader(viewed, batches, validation.workers, torch.device("cpu"), keep_workers=False)
    end, decoded = time.monotonic() + seconds, 0
    try:
        for collated in batches_of(loader):
            decoded += collated.samples
            if decoded >= ALWAYS_DECODED and time.monotonic() > end:
                break
    except BrokenImageError as error:
        return decoded, f"{error}; every validation image must be readable: remove or convert this file"
    except InputError as error:
        return decoded, str(error)
    return decoded, None


def require_sound(looks: Sequence[tuple[int, str | None]], total: int) -> list[str]:
    """Raise an InputError if a process found a broken image. Return a line if not all images were decoded.

    Args:
        looks: What `look_through` returned in each process.
        total: The number of validation images.
    """
    for _, error in looks:
        if error:
            raise InputError(error)
    decoded = sum(number for number, _ in looks)
    if decoded == total:
        return []
    return [
        f"data: {decoded:,} of {total:,} validation images were decoded in {LOOK_SECONDS:g} s, and none is broken; "
        "the others are decoded after the first epoch"
    ]
