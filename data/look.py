"""The look through the validation images before training. It finds broken ones."""

import time
from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import torch

from xcit.encoded_image import BrokenImageError
from xcit.errors import InputError

from .broken_images import listing, remedy
from .examples import Example, View
from .loader import EvalLoader, batches_of, make_loader

LOOK_SECONDS = 5.0
"""The time for a look through the validation images before training, if there are more than ALWAYS_DECODED."""
ALWAYS_DECODED = 64
"""The number of images that each process decodes, however long it takes."""
DECODED_AT_ONCE = 4
"""Images of one batch of this look: few, so that it ends soon after its time."""


class Look(NamedTuple):
    """What one process found."""

    decoded: int
    """The number of images that it tried to decode."""
    broken: list[str]
    """A description of each broken one."""
    error: InputError | None = None
    """What ended the look, if it is no broken image."""


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


def look_through(validation: EvalLoader, seconds: float = LOOK_SECONDS) -> Look:
    """Decode this process's validation images before training: ALWAYS_DECODED, and more as the time allows.

    Otherwise a broken image would stop the run at the end of its first epoch. All that are broken are found at once.
    """
    if validation.viewed.examples.decoded_before:
        return Look(len(validation.batches.own), [])
    viewed = copy(validation.viewed)
    viewed.view, viewed.replace = Discarded(viewed.view), True  # so that the look goes on after a broken image
    batches = copy(validation.batches)
    batches.batch_size = DECODED_AT_ONCE
    loader = make_loader(viewed, batches, validation.workers, torch.device("cpu"), keep_workers=False)
    end, decoded = time.monotonic() + seconds, 0
    broken: set[str] = set()
    try:
        for collated in batches_of(loader):
            decoded += collated.samples
            broken |= set(collated.broken)
            if decoded >= ALWAYS_DECODED and time.monotonic() > end:
                break
    except BrokenImageError as error:  # there are too many to replace them
        broken.add(str(error))
    except InputError as error:
        return Look(decoded, [], error)
    return Look(decoded, sorted(broken))


def require_sound(looks: Sequence[Look], total: int) -> list[str]:
    """Raise an error if images are broken, or the error that a process met. Return a note if not all were decoded.

    Args:
        looks: What each process found.
        total: The number of validation images.
    """
    for _, _, error in looks:
        if error:
            error.of_one_process = False  # every process raises it here
            raise error
    broken = sorted({description for look in looks for description in look.broken})
    decoded = sum(look.decoded for look in looks)
    if len(broken) == 1:
        advice = remedy(broken, "this file")
        raise InputError(f"{broken[0]}; every validation image must be readable: {advice}")
    if broken:
        found = f"data: {len(broken)} broken images among {decoded:,} validation images"
        raise InputError(listing(f"{found}; {remedy(broken, 'these files')}:", broken))
    if decoded == total:
        return []
    return [
        f"{decoded:,} of {total:,} validation images were decoded in {LOOK_SECONDS:g} s, and none is broken; "
        "the others are decoded after the first epoch, and training images when they are used"
    ]
