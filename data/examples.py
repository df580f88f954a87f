"""The interfaces between data sets, views and the loader: `Example`, `Examples`, `DataSource` and `View`."""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image

from xcit.encoded_image import EncodedImage
from xcit.errors import InputError

from .about import About

HELD_OUT = "the held-out images"
"""The key of `Examples.order` that says how the validation images were chosen, if the data set has no splits."""
VAL_FRACTION = "data.val_fraction"
"""The key of the share of the images that is held out."""
DIGEST = "the digest of the held-out images"
"""The key of `digest_of` the names of the validation images, if how they were chosen does not determine them."""
NONE_HELD_OUT = "none"
"""The value of HELD_OUT if all images are evaluated."""


class Example(NamedTuple):
    """One item of a data set, before any decoding or augmentation."""

    image: Image.Image | EncodedImage
    """A Pillow image, or the bytes of an image file. A view decodes only the part of the file that it needs."""
    target: Any
    """What the data set knows about the image. `Examples.target_kind` says which kind of target it is."""
    key: str
    """A path or a number that identifies the example in messages to the user."""
    weight: float = 1.0
    """How much the example counts in the loss. The mean over the training split is 1."""


class Examples(Protocol):
    """One split of a data set. Subclasses implement `__len__`, `__getitem__` and `classes`.

    Attributes:
        target_kind: "class" (an int, an index into `classes`), "classes" (several labels: a float32 array (K,) of 0 and
            1), "values" (numbers: a float32 array (K,)), "boxes", "mask" (an image of class indices) or "none". NaN is
            an unknown label or value. A task that needs another kind refuses the data set.
        about: Where the examples are from, for the start-up lines.
        decoded_before: Whether all images were decoded when the data set was made. Then they need no look before
            training.
    """

    target_kind: str = "class"
    decoded_before: bool = False
    about: About = About()
    classes: list[str]
    """The name of each class; empty if the targets have no classes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def shuffled(self, random: np.random.Generator) -> np.ndarray:
        """Return all indices in random order. Shards override it, because they allow only some orders."""
        return random.permutation(len(self))

    @property
    def members(self) -> list[np.ndarray] | None:
        """The indices of the images of each class, or with each label; None if they are unknown."""
        return None

    @property
    def class_counts(self) -> np.ndarray | None:
        """(num_classes,): the number of images of each class, or with each label; None if it is unknown."""
        members = self.members
        return None if members is None else np.array([len(images) for images in members])

    @property
    def num_present(self) -> int | None:
        """The number of `classes` that have an image in this split; None if that is unknown."""
        return None

    @property
    def label_table(self) -> np.ndarray:
        """The targets of all examples, (N, K), for target_kind "classes" and "values".

        Data sets that have them at hand override it, because this reads every example.
        """
        return np.stack([self[index].target for index in range(len(self))])

    @property
    def order(self) -> dict[str, object]:
        """What decides which images there are, and their order, besides the length: configuration key → value."""
        return {}


def members_of(labels: np.ndarray | Sequence[int], num_classes: int) -> list[np.ndarray]:
    """Return the indices of the images of each class. labels: (num_images,), indices of classes."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=num_classes))[:-1])


def digest_of(names: Iterable[str]) -> str:
    """Return a short text that tells one set of names from another."""
    content = "\0".join(sorted(unicodedata.normalize("NFC", name) for name in names))
    return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:16]


MOST_ROUNDING = 0.01
"""Largest step between two numbers in fp32, as a share of the standard deviation of a value to learn."""


def target_statistics(examples: Examples) -> dict[str, Any]:
    """What a task may need to know of the training targets, as keyword arguments of xcit.engine.task.Target.

    Raises:
        InputError: A value is the same in all images, is known in fewer than two, or differs by too little for fp32.
    """
    if examples.target_kind == "class":
        counts = examples.class_counts
        return {} if counts is None else {"counts": tuple(counts.tolist())}
    if examples.target_kind not in ("classes", "values"):
        return {}
    table = examples.label_table.astype(np.float64)
    if examples.target_kind == "classes":
        known, positives = ~np.isnan(table), table > 0.5
        return {"counts": tuple(positives.sum(axis=0).tolist()), "known": tuple(known.sum(axis=0).tolist())}
    for name, values in zip(examples.classes, table.T, strict=True):
        known = values[~np.isnan(values)]
        if len(np.unique(known)) < 2:
            what = "at least two different numbers in the training images, in 32-bit floating point"
            raise InputError(f"data: {name!r} needs {what}")
        step, std = np.spacing(np.float32(np.abs(known).max())), known.std()
        if step > MOST_ROUNDING * std:  # such as times in seconds since 1970
            raise InputError(
                f"data: {name!r} has a standard deviation of {std:.3g} in the training images, but 32-bit floating "
                f"point has steps of {step:.3g} there; subtract a number near {known.mean():.6g} from the column"
            )
    return {"mean": tuple(np.nanmean(table, axis=0).tolist()), "std": tuple(np.nanstd(table, axis=0).tolist())}


class DataSource(Protocol):
    """A data set: a class in data/datasets whose keyword arguments are the options of conf/data/NAME.yaml."""

    def train(self) -> Examples:
        """Return the training split."""

    def val(self, classes: list[str] | None = None) -> Examples:
        """Return the validation split. Its targets are indices into `classes`, the training split's, if given."""


def examples_to_evaluate(source: DataSource, classes: list[str] | None, *, of_run: bool) -> Examples:
    """Return the examples that a model is evaluated on.

    That is the validation split. A data set that may have no splits has a method `everything`; then a model is
    evaluated on every image, unless it was trained on this data set.

    Args:
        source: The data set.
        classes: The model's classes, if they are known.
        of_run: Whether the model was trained on this data set.
    """
    everything = getattr(source, "everything", None)
    return source.val(classes) if of_run or everything is None else everything(classes)


class View(Protocol):
    """Defines what a task sees of an example. `sample` and `collate` run in a worker, `to_device` in the main process.

    All random numbers must follow from seeds. The loader seeds the global generators of Python, numpy and torch before
    each call of `sample`.
    """

    def sample(self, example: Example) -> Any:
        """Turn one example into a sample. Pixels should be uint8, to keep the transfer to the main process small."""

    def collate(self, samples: Sequence[Any]) -> Any:
        """Combine samples into one batch: tensors and plain data, nested in tuples, lists or dicts.

        `SharedBuffers.stack` (data/shared_memory.py) stacks pixels without allocating memory for each batch.
        """

    def to_device(self, collated: Any, device: torch.device, seeds: Sequence[int], batch_seed: Sequence[int]) -> Any:
        """Move a batch to the device and finish it. Return an object of the batch class that the view defines.

        Args:
            collated: What `collate` returned.
            device: The device of the model.
            seeds: The seed of each sample, the same as in its call of `sample`.
            batch_seed: The seed for operations on the whole batch, mixup for example.
        """

    def check_batch_size(self, batch_size: int) -> None:
        """Raise an InputError if the view does not support this batch size. By default it supports all."""
        return

    def check_kind(self, target_kind: str) -> None:
        """Raise an InputError if the view does not support targets of this kind. By default it supports all."""
        return
