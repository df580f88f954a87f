"""Parts of a data set are alike: each has its share of every class. Groups are never divided."""

from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from data.datasets.stratified import fold_of, held_out_share
from data.examples import members_of


def names_of(count: int) -> list[str]:
    return [f"image {number}" for number in range(count)]


def counts_in(parts: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(num_parts, num_classes)"""
    return np.array([np.bincount(labels[parts == part], minlength=labels.max() + 1) for part in np.unique(parts)])


@pytest.mark.parametrize("sizes", [[10, 25, 7, 103], [5, 5, 5], [40]])
@pytest.mark.parametrize("seed", [0, 1])
def test_folds_differ_by_an_image_of_each_class_at_most(sizes: Sequence[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    found = fold_of(names_of(len(labels)), members_of(labels, len(sizes)), 5, seed)
    counts = counts_in(found, labels)
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert np.ptp(counts.sum(axis=1)) <= len(sizes)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5, 0.9])
def test_each_class_has_a_training_image_and_if_it_can_a_validation_image(fraction: float) -> None:
    sizes = np.array([1, 2, 3, 10, 50])
    labels = np.repeat(np.arange(5), sizes)
    chosen = held_out_share(names_of(len(labels)), members_of(labels, 5), fraction, 0)
    held = np.bincount(labels[chosen], minlength=5)
    assert (held < sizes).all()
    assert held[0] == 0
    assert (held[1:] > 0).all()
    assert np.abs(held - fraction * sizes).max() <= 1


def test_several_labels_are_shared_out() -> None:
    """Labels that are rare, and that occur together, are as even as those of random folds are not."""
    random = np.random.default_rng(0)
    flags = random.random((600, 6)) < [0.5, 0.3, 0.1, 0.05, 0.02, 0.01]
    flags[:, 3] |= flags[:, 2] & (random.random(600) < 0.5)
    members = [np.flatnonzero(column) for column in flags.T]
    found = fold_of(names_of(600), members, 5, 0)
    counts = np.array([flags[found == fold].sum(axis=0) for fold in range(5)])
    assert (np.ptp(counts, axis=0) <= 2).all(), counts
    assert np.ptp(np.bincount(found)) <= 6


def test_groups_are_together_and_classes_as_even_as_scikit_learn_makes_them() -> None:
    random = np.random.default_rng(0)
    groups = np.sort(random.integers(60, size=500))
    labels = (groups % 3 + (random.random(500) < 0.3)) % 3
    found = fold_of([f"patient {group}" for group in groups], members_of(labels, 3), 5, 0)
    for group in range(60):
        assert len(set(found[groups == group])) <= 1
    theirs = np.zeros(500, dtype=int)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(np.zeros(500), labels, groups)
    for fold, (_, held) in enumerate(folds):
        theirs[held] = fold
    spread, other = (np.ptp(counts_in(parts, labels), axis=0).max() for parts in (found, theirs))
    assert spread <= 1.25 * other, (spread, other)
    assert np.ptp(np.bincount(found)) <= 0.1 * 100


def test_without_classes_parts_have_the_same_size() -> None:
    assert np.bincount(fold_of(names_of(23), [], 5, 0)).tolist() == [5, 5, 5, 4, 4]
    assert held_out_share(names_of(23), [], 0.2, 0).sum() == 5
    sizes = [8, 4, 3, 3, 2]
    groups = np.repeat([f"patient {number}" for number in range(5)], sizes).tolist()
    assert sorted(np.bincount(fold_of(groups, [], 2, 0)).tolist()) == [10, 10]


def test_the_order_of_the_images_does_not_matter() -> None:
    labels = np.arange(60) % 3
    names = names_of(60)
    mixed = np.random.default_rng(0).permutation(60)
    first = fold_of(names, members_of(labels, 3), 4, 0)
    again = fold_of([names[image] for image in mixed], members_of(labels[mixed], 3), 4, 0)
    np.testing.assert_array_equal(first[mixed], again)
    assert (fold_of(names, members_of(labels, 3), 4, 1) != first).any()
