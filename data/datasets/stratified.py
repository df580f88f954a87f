"""Divides images into parts that are alike: each gets its share of every class, and groups stay together."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from .splits import hash_of


def held_out_share(names: Sequence[str], members: Sequence[np.ndarray], fraction: float, seed: int) -> np.ndarray:
    """Return which images are held out: (num_images,), bool. About `fraction` of each class is.

    A class whose images are all in one unit is for training.

    Args:
        names: The name of each image's unit: a group of images, or a single image. A unit is never divided.
        members: The images of each class, as `Examples.members` returns them.
        fraction: The share that is held out.
        seed: Another seed gives another division.
    """
    units = Units(names, members, seed)
    alone = units.counts[:, units.num_units == 1].sum(axis=1) > 0
    chosen = np.zeros(len(units.sizes), dtype=bool)
    chosen[~alone] = divide(units.counts[~alone], units.sizes[~alone], [1 - fraction, fraction]) == 1
    return chosen[units.of_image]


def fold_of(names: Sequence[str], members: Sequence[np.ndarray], folds: int, seed: int) -> np.ndarray:
    """Return the fold of each image, from 0: (num_images,). The arguments are as in `held_out_share`."""
    units = Units(names, members, seed)
    return divide(units.counts, units.sizes, [1 / folds] * folds)[units.of_image]


class Units:
    """What is never divided: groups of images, or single images. Their order follows from their names and the seed."""

    def __init__(self, names: Sequence[str], members: Sequence[np.ndarray], seed: int) -> None:
        unique, of_image = np.unique(np.array(names, dtype=object), return_inverse=True)
        place = np.argsort(np.argsort([hash_of(name, seed) for name in unique]))
        self.of_image = place[of_image]
        """(num_images,): the unit of each image."""
        self.sizes = np.bincount(self.of_image, minlength=len(unique))
        """(num_units,): the images of each unit."""
        images = np.concatenate([*members, np.zeros(0, dtype=int)])
        labels = np.repeat(np.arange(len(members)), [len(images_of) for images_of in members])
        entries = (np.ones(len(images), dtype=int), (self.of_image[images], labels))
        self.counts = csr_array(entries, shape=(len(unique), len(members)))
        """(num_units, num_classes), sparse: the images of each class in each unit."""
        self.counts.sum_duplicates()
        self.num_units = (self.counts > 0).sum(axis=0)
        """(num_classes,): the units of each class."""


def divide(counts: csr_array, sizes: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Return the part of each unit: (num_units,), by iterative stratification (Sechidis et al., ECML 2011).

    The class with the fewest units that are left is next. Each of its units, the largest first, goes to the part that
    still wants most images of this class, and among equals to the one that wants most images. A part without this class
    goes first once there are only as many units as such parts. Units without a class are last.

    Args:
        counts: (num_units, num_classes), the images of each class in each unit.
        sizes: (num_units,), the images of each unit.
        shares: The share of each part; the sum is 1.
    """
    num_units = len(sizes)
    room = sizes.sum() * np.array(shares)
    wanted = np.outer(counts.sum(axis=0), shares)
    has = np.zeros(wanted.shape, dtype=bool)
    part = np.full(num_units, -1)
    left = (counts > 0).sum(axis=0)
    by_class, every = counts.tocsc(), np.arange(len(shares))

    def give(unit: int, chosen: int) -> None:
        row = slice(counts.indptr[unit], counts.indptr[unit + 1])
        labels = counts.indices[row]
        wanted[labels, chosen] -= counts.data[row]
        has[labels, chosen] = True
        left[labels] -= 1
        room[chosen] -= sizes[unit]
        part[unit] = chosen

    while len(open_classes := np.flatnonzero(left)):
        label = open_classes[left[open_classes].argmin()]
        column = slice(by_class.indptr[label], by_class.indptr[label + 1])
        units, images = by_class.indices[column], by_class.data[column]
        units = units[np.lexsort((units, -images))]
        for unit in units[part[units] < 0]:
            lacking = np.flatnonzero(~has[label])
            parts = lacking if left[label] <= len(lacking) else every
            give(unit, parts[np.lexsort((-room[parts], -wanted[label, parts]))[0]])
    for unit in np.lexsort((np.arange(num_units), -sizes)):
        if part[unit] < 0:
            give(unit, int(room.argmax()))
    return part
