"""A torch Dataset that applies a view to the examples of a data set. Its items are requested by (index, seed)."""

import dataclasses
import random
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from xcit.encoded_image import MAX_PIXELS, BrokenImageError, EncodedImage
from xcit.errors import InputError

from .examples import Examples, View

REPLACEMENTS = 10
"""How many other examples are tried in place of one that cannot be decoded."""


class ViewedSample(NamedTuple):
    """The result of one item: what a worker sends to be collated."""

    sample: Any
    """What the view made of the example."""
    seed: int
    """The seed of the sample's random numbers."""
    broken: tuple[str, ...] = ()
    """One description for each example that could not be decoded and that this sample replaces."""


class ViewedExamples(Dataset):
    """Applies a view to examples, with random numbers that depend only on the seed of each item.

    The state of the worker has no influence. An augmented image is therefore the same in any process, with any number
    of workers, and after a resume.

    Args:
        examples: The split to read from.
        view: The view to apply.
        replace: Whether an example that cannot be decoded is replaced by another one, which the seed determines.
        max_pixels: Images with more pixels are broken.
    """

    def __init__(self, examples: Examples, view: View, *, replace: bool, max_pixels: int = MAX_PIXELS) -> None:
        self.examples, self.view, self.replace, self.max_pixels = examples, view, replace, max_pixels

    def __getitem__(self, item: tuple[int, int]) -> ViewedSample | InputError:
        """Return the sample, or the error if there is none.

        Errors are returned, not raised, because a DataLoader would replace the message of a raised one by a traceback.
        """
        index, seed = item
        broken: list[str] = []
        while True:
            try:
                return ViewedSample(self.sample(index, seed), seed, tuple(broken))
            except BrokenImageError as error:
                broken.append(str(error))
                if not self.replace or len(broken) > REPLACEMENTS:
                    return error
                index = random.Random(f"{seed} {len(broken)}").randrange(len(self.examples))
            except InputError as error:
                return error

    def sample(self, index: int, seed: int) -> Any:
        """Seed the global generators of Python, numpy and torch, then apply the view to one example."""
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # only the CPU's; torch.manual_seed takes 0.2 ms, for all devices
        example = self.examples[index]
        if isinstance(example.image, EncodedImage):
            example = example._replace(image=dataclasses.replace(example.image, max_pixels=self.max_pixels))
        return self.view.sample(example)
