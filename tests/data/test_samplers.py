"""The images of each batch are a function of (seed, epoch), for any number of processes."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest

from data.datasets.digits import Digits
from data.examples import Examples, members_of
from data.samplers import Balanced, EvalBatches, TrainBatches, sampling_of
from xcit.errors import InputError

Entry = tuple[int, int]


def batches_of(images: int, batch_size: int, *, epoch: int = 0, **options: int) -> list[list[Entry]]:
    batches = TrainBatches(images, batch_size, seed=7, **options)
    batches.epoch = epoch
    listed = list(batches)
    assert len(listed) == len(batches)
    return listed


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("images", [1, 5, 24, 100, 1437])
def test_global_batches_are_the_same_for_any_number_of_processes(images: int, repeats: int, world_size: int) -> None:
    alone = batches_of(images, 24, repeats=repeats)
    shares = [
        batches_of(images, 24 // world_size, repeats=repeats, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for number, batch in enumerate(alone):
        together = list(chain.from_iterable(share[number] for share in shares))
        assert Counter(together) == Counter(batch)


@pytest.mark.parametrize("world_size", [2, 3])
def test_mixing_partners_are_the_same_for_any_number_of_processes(world_size: int) -> None:
    """timm's Mixup mixes position j with position b - 1 - j."""

    def partners(batches: list[list[Entry]]) -> set[frozenset[Entry]]:
        return {frozenset((b[j], b[len(b) - 1 - j])) for b in batches for j in range(len(b))}

    shares = [batches_of(100, 24 // world_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert partners(list(chain.from_iterable(shares))) == partners(batches_of(100, 24))


@pytest.mark.parametrize("images", [100, 31])
def test_an_epoch_takes_each_image_once(images: int) -> None:
    seen = [index for batch in batches_of(images, 10) for index, _ in batch]
    assert len(seen) == images // 10 * 10
    assert len(set(seen)) == len(seen)


def test_a_data_set_smaller_than_a_batch_fills_it_evenly() -> None:
    (batch,) = batches_of(5, 12)
    assert sorted(Counter(index for index, _ in batch).values()) == [2, 2, 2, 3, 3]


@pytest.mark.parametrize("world_size", [3, 4])
def test_copies_of_an_image_go_to_different_processes_in_the_same_step(world_size: int) -> None:
    shares = [batches_of(600, 6, repeats=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    copies: Counter = Counter()
    for number in range(len(shares[0])):
        where: dict[int, list[int]] = {}
        for rank, share in enumerate(shares):
            for index, _ in share[number]:
                where.setdefault(index, []).append(rank)
        for ranks in where.values():
            assert len(set(ranks)) == len(ranks)
            copies[len(ranks)] += 1
    assert copies[3] > 0.9 * copies.total(), "nearly all copies are in the same batch"


def test_copies_are_augmented_differently_and_epochs_too() -> None:
    first, second = batches_of(60, 12, repeats=3), batches_of(60, 12, repeats=3, epoch=1)
    entries = list(chain.from_iterable(first))
    assert len(set(entries)) == len(entries)
    assert first != second
    assert first == batches_of(60, 12, repeats=3)


@pytest.mark.parametrize("images", [5, 100, 1437])
@pytest.mark.parametrize("done", [0, 1, 2, 4])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1), (2, 4)])
def test_an_interrupted_epoch_is_finished_by_any_number_of_processes(
    before: int, after: int, done: int, images: int
) -> None:
    """An update is 24 images in two passes. Both runs together see each entry of an uninterrupted epoch once."""

    def shares(world_size: int, start: int, stop: int | None = None) -> list[Entry]:
        found: list[Entry] = []
        for rank in range(world_size):
            batches = TrainBatches(
                images, 12 // world_size, seed=7, accumulate=2, repeats=3, rank=rank, world_size=world_size
            )
            batches.start = start
            found += chain.from_iterable(list(batches)[:stop])
        return found

    whole = Counter(chain.from_iterable(batches_of(images, 12, accumulate=2, repeats=3)))
    seen, left = shares(before, 0, 2 * done), shares(after, 2 * done)
    assert Counter(seen) + Counter(left) == whole
    assert len(left) == max(0, whole.total() - 24 * done)


LABELS = np.repeat([0, 1, 2], [3, 17, 80])


def balanced_batches(batch_size: int, epoch: int = 0, start: int = 0, **places: int) -> list[list[Entry]]:
    batches = TrainBatches(100, batch_size, seed=7, shuffled=Balanced(100, members_of(LABELS, 3)), **places)
    batches.epoch, batches.start = epoch, start
    return list(batches)


def test_balanced_sampling_draws_each_class_equally_often() -> None:
    favoured = set()
    for epoch in range(10):
        drawn = [index for batch in balanced_batches(20, epoch) for index, _ in batch]
        counts = np.bincount(LABELS[drawn])
        assert sorted(counts) == [33, 33, 34]
        favoured.add(int(counts.argmax()))
        assert len(set(drawn) & set(range(3))) == 3
        assert len(set(LABELS[drawn[:20]])) == 3, "the classes are mixed"
    assert len(favoured) == 3, "each class is drawn once more in some epochs"
    assert balanced_batches(20, 0) != balanced_batches(20, 1)


@pytest.mark.parametrize("world_size", [2, 4])
def test_balanced_sampling_is_the_same_for_any_number_of_processes_and_after_a_resume(world_size: int) -> None:
    alone = balanced_batches(20, 1)
    shares = [balanced_batches(20 // world_size, 1, rank=rank, world_size=world_size) for rank in range(world_size)]
    for number, batch in enumerate(alone):
        assert Counter(chain.from_iterable(share[number] for share in shares)) == Counter(batch)
    assert balanced_batches(20, 1, start=3) == alone[3:]


def test_each_of_several_labels_is_drawn_equally_often_and_images_without_a_label_too() -> None:
    both, rare, none = np.arange(50), np.arange(45, 50), np.arange(50, 60)
    drawn = Balanced(60, [both, rare])(np.random.default_rng(0))
    assert np.isin(drawn, none).sum() == 20
    assert np.isin(drawn, rare).sum() >= 20
    assert len(drawn) == 60


def test_balanced_sampling_needs_classes() -> None:
    class Values(Examples):
        target_kind = "values"

    assert isinstance(sampling_of(Digits().train(), "balanced"), Balanced)
    with pytest.raises(InputError, match=r"data.sampling=balanced: needs .* do not exist \(values\)"):
        sampling_of(Values(), "balanced")


@pytest.mark.parametrize(("images", "batches"), [(3, 4), (39, 4), (40, 8), (47, 8)])
def test_an_epoch_is_whole_updates_when_passes_are_accumulated(images: int, batches: int) -> None:
    assert len(batches_of(images, 5, accumulate=4)) == batches


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("images", [1, 2, 20, 23])
def test_validation_takes_each_image_exactly_once(images: int, world_size: int) -> None:
    seen = [
        index
        for rank in range(world_size)
        for batch in EvalBatches(images, 4, rank=rank, world_size=world_size)
        for index, _ in batch
    ]
    assert sorted(seen) == list(range(images))
    shares = [EvalBatches(images, 4, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [len(share) for share in shares] == [len(list(share)) for share in shares]
