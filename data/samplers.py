"""Batch samplers: which images make up each batch of each process. They are functions of (seed, epoch)."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from xcit.errors import InputError

from .examples import Examples

Shuffled = Callable[[np.random.Generator], np.ndarray]


def sampling_of(examples: Examples, sampling: str) -> Shuffled:
    """Return what draws the images of an epoch: `Examples.shuffled` for "uniform", `Balanced` for "balanced".

    Raises:
        InputError: The classes of the images are unknown, or there are none.
    """
    if sampling == "uniform":
        return examples.shuffled
    members = examples.members
    if members is None:
        known = (
            f"do not exist ({examples.target_kind})" if examples.target_kind != "class" else "are not known beforehand"
        )
        raise InputError(f"data.sampling=balanced: needs the classes of all images; those of this data set {known}")
    return Balanced(len(examples), members)


class Balanced:
    """Draws as many images as there are, with replacement, so that each class is drawn equally often.

    An image with several labels is in the class of each of them, and the images without a label are a further class. If
    the classes do not divide the number of images, random classes are drawn once more than the others.
    """

    def __init__(self, images: int, members: Sequence[np.ndarray]) -> None:
        """members: the images of each class, as `Examples.members` returns them."""
        unlabelled = np.setdiff1d(np.arange(images), np.concatenate(members))
        self.images = images
        self.members = [numbers for numbers in (*members, unlabelled) if len(numbers)]

    def __call__(self, random: np.random.Generator) -> np.ndarray:
        classes = random.permutation(len(self.members))
        drawn = [
            random.choice(self.members[number], size=len(range(place, self.images, len(classes))))
            for place, number in enumerate(classes)
        ]
        return random.permutation(np.concatenate(drawn))


class TrainBatches:
    """Yields the training batches of one process as lists of (index, seed of the augmentation).

    An epoch is a list of entries:

    - The entries are a permutation of the data set, in which each image occurs `repeats` times in a row (repeated
      augmentation, Hoffer et al., arXiv 1901.09335).
    - They are truncated to the number of images and then to whole updates. An update takes `accumulate` global batches
      of batch_size * world_size entries. If the data set is smaller than one update, further permutations fill the
      update.
    - Process r of W takes the entries r, r + W, r + 2W and so on. Thus different processes get the copies of an image
      in the same step, and a global batch does not depend on W.

    The second half of each batch is reversed, because timm's Mixup mixes position j with position B - 1 - j. Then entry
    e of a global batch is mixed with entry e + half of the global batch. One process has both, whatever W is.

    Args:
        images: Number of images in the data set.
        batch_size: Number of images of one forward pass in this process.
        seed: Seed of the run.
        accumulate: Number of forward passes per update.
        repeats: Number of copies of each image.
        rank: Rank of this process.
        world_size: Number of processes, W.
        shuffled: Draws as many images as there are: a permutation that the data set allows, or by `sampling_of`. The
            default draws any permutation.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        *,
        seed: int,
        accumulate: int = 1,
        repeats: int = 1,
        rank: int = 0,
        world_size: int = 1,
        shuffled: Shuffled | None = None,
    ) -> None:
        self.images, self.batch_size, self.seed, self.repeats = images, batch_size, seed, repeats
        self.accumulate, self.rank, self.world_size = accumulate, rank, world_size
        self.shuffled = shuffled or (lambda random: random.permutation(images))
        # The loader sets both before each epoch. `start` is the number of batches that are skipped.
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        """Return the number of batches in an epoch, without regard to `start`."""
        return max(1, self.images // (self.batch_size * self.world_size * self.accumulate)) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        random = np.random.default_rng([self.seed, self.epoch])
        # Draw the entries of all processes and their seeds.
        entries = len(self) * self.batch_size * self.world_size
        permutations = -(-entries // (self.images * self.repeats))
        order = np.concatenate([self.shuffled(random) for _ in range(permutations)]).repeat(self.repeats)[:entries]
        seeds = random.integers(2**32, size=entries)
        # Take those of this process.
        own = list(
            zip(order[self.rank :: self.world_size].tolist(), seeds[self.rank :: self.world_size].tolist(), strict=True)
        )
        # Cut them into batches, and reverse the second half of each.
        for start in range(self.start * self.batch_size, len(own), self.batch_size):
            middle, end = start + self.batch_size // 2, start + self.batch_size
            yield own[start:middle] + own[middle:end][::-1]


class EvalBatches:
    """Yields the evaluation batches of one process. Over all processes each image occurs exactly once, without padding.

    Processes may get different numbers of batches. Therefore no process may wait for another one before the end of the
    evaluation.

    Args:
        images: Number of images in the split.
        batch_size: Number of images per batch.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(self, images: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.own = range(rank, images, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Return the number of batches of this process."""
        return -(-len(self.own) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(0, len(self.own), self.batch_size):
            yield [(index, 0) for index in self.own[start : start + self.batch_size]]
