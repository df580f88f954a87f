"""Which images make up which batch: a function of (seed, epoch), shared out over the processes."""

from collections.abc import Callable, Iterator

import numpy as np


class TrainBatches:
    """The batches of one process, as lists of (index, seed of its augmentation).

    The epoch's entries are a permutation of the data set, each image `repeats` times in a row (repeated augmentation,
    Hoffer et al., arXiv 1901.09335), cut to as many entries as there are images and then to whole updates: global
    batches of `accumulate` passes over W processes each. A data set smaller than one update is gone through as often
    as it takes to fill it. Process r of W takes the entries r, r + W, r + 2W, …: the copies of one image go to
    different processes in the same step, and a global batch is the same whatever W is.

    In each batch the second half runs backwards. timm's Mixup mixes position j with position b - 1 - j; so it mixes
    entry e of the global batch with entry e + B / 2, which lie in the same process whatever W is.
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
        shuffled: Callable[[np.random.Generator], np.ndarray] | None = None,
    ) -> None:
        """batch_size: of this process, for one forward pass; images: how many the data set has.

        shuffled: draws a permutation of the images that suits how they lie; by default any is as likely as another.
        """
        self.images, self.batch_size, self.seed, self.repeats = images, batch_size, seed, repeats
        self.accumulate, self.rank, self.world_size = accumulate, rank, world_size
        self.shuffled = shuffled or (lambda random: random.permutation(images))
        self.epoch, self.start = 0, 0  # set by the loader before each epoch; start: batches that are left out

    def __len__(self) -> int:
        return max(1, self.images // (self.batch_size * self.world_size * self.accumulate)) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        random = np.random.default_rng([self.seed, self.epoch])
        entries = len(self) * self.batch_size * self.world_size
        rounds = -(-entries // (self.images * self.repeats))
        order = np.concatenate([self.shuffled(random) for _ in range(rounds)]).repeat(self.repeats)[:entries]
        seeds = random.integers(2**32, size=entries)
        own = list(
            zip(order[self.rank :: self.world_size].tolist(), seeds[self.rank :: self.world_size].tolist(), strict=True)
        )
        for start in range(self.start * self.batch_size, len(own), self.batch_size):
            middle, end = start + self.batch_size // 2, start + self.batch_size
            yield own[start:middle] + own[middle:end][::-1]


class EvalBatches:
    """The validation batches of one process: every image exactly once over all processes, no padding.

    The processes may get different numbers of batches, so nothing in an evaluation may wait for another process
    before its end.
    """

    def __init__(self, images: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.own = range(rank, images, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.own) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(0, len(self.own), self.batch_size):
            yield [(index, 0) for index in self.own[start : start + self.batch_size]]
