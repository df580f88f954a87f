"""The look through the validation images before training. It finds broken ones."""

import time
from collections.abc import Sequence
from copy import copy

import torch

from xcit.errors import InputError

from .encoded_image import BrokenImageError
from .examples import Example, View
from .loader import EvalLoader, batches_of, make_loader

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


def look_through(validation: EvalLoader, seconds: float = LOOK_SECONDS) -> tuple[int, InputError | None]:
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
        return decoded, InputError(f"{error}; every validation image must be readable: remove or convert this file")
    except InputError as error:
        return decoded, error
    return decoded, None


def require_sound(looks: Sequence[tuple[int, InputError | None]], total: int) -> list[str]:
    """Raise the error that a process met. Return a line if not all images were decoded.

    Args:
        looks: What `look_through` returned in each process.
        total: The number of validation images.
    """
    for _, error in looks:
        if error:
            error.of_one_process = False  # every process raises it here
            raise error
    decoded = sum(number for number, _ in looks)
    if decoded == total:
        return []
    return [
        f"data: {decoded:,} of {total:,} validation images were decoded in {LOOK_SECONDS:g} s, and none is broken; "
        "the others are decoded after the first epoch"
    ]
