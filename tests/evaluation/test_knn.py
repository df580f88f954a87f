"""Weighted k-NN agrees with scikit-learn's, for any chunk, and leaves out the image itself where it must."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import top_k_accuracy_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from xcit.errors import InputError
from xcit.evaluation.knn import leave_one_out_knn, weighted_knn

K = (1, 10, 20, 100)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """Features, (1797, 64), and labels, (1797,)."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.float32), torch.tensor(labels)


def oracle(k: int, temperature: float) -> KNeighborsClassifier:
    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / temperature)

    return KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute")


@pytest.mark.parametrize("temperature", [0.07, 0.02, 1.0])
def test_the_classes_are_those_of_scikit_learn(digits: tuple[Tensor, Tensor], temperature: float) -> None:
    features, labels = digits
    bank, queries = slice(0, 900), slice(900, None)
    ranked = weighted_knn(features[bank], labels[bank], features[queries], 10, K, temperature)
    for k in K:
        expected = oracle(k, temperature).fit(features[bank].numpy(), labels[bank].numpy())
        probabilities = expected.predict_proba(features[queries].numpy())
        assert ranked[k].shape == (897, 5)
        assert np.mean(ranked[k][:, 0].numpy() == probabilities.argmax(axis=1)) > 0.998, "but for rounding in ties"
        if k >= 20:
            top5 = (ranked[k] == labels[queries, None]).any(dim=1).float().mean().item()
            assert top5 == pytest.approx(top_k_accuracy_score(labels[queries].numpy(), probabilities, k=5), abs=0.005)


def test_chunks_change_nothing_and_a_class_without_a_vote_is_not_ranked(digits: tuple[Tensor, Tensor]) -> None:
    features, labels = digits
    arguments = (features[:500], labels[:500], features[500:607], 10, [1, 20])
    whole, chunked = weighted_knn(*arguments), weighted_knn(*arguments, chunk=10)
    assert all(torch.equal(whole[k], chunked[k]) for k in whole)
    assert (whole[1][:, 0] >= 0).all() and (whole[1][:, 1:] == -1).all()
    cold = weighted_knn(*arguments, temperature=1e-6)
    assert torch.equal(cold[20][:, 0], whole[1][:, 0]), "the nearest alone decides"


def test_a_k_beyond_the_bank_is_refused_in_one_line(digits: tuple[Tensor, Tensor]) -> None:
    features, labels = digits
    with pytest.raises(InputError, match=r"^k=200: must be at most 150, the number of images whose classes are known$"):
        weighted_knn(features[:150], labels[:150], features[150:], 10, [10, 200])


def test_each_image_is_classified_by_the_others(digits: tuple[Tensor, Tensor]) -> None:
    features, labels = digits[0][:400], digits[1][:400]
    predicted = cross_val_predict(oracle(20, 0.07), features.numpy(), labels.numpy(), cv=LeaveOneOut())
    expected = 100 * np.mean(predicted == labels.numpy())
    assert leave_one_out_knn(features, labels, k=20, chunk=70) == pytest.approx(expected, abs=0.3)
    noise = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    assert leave_one_out_knn(noise, labels, k=1) < 25, "an image that voted for itself would give 100"
    assert 0 <= leave_one_out_knn(features[:3], labels[:3], k=20) <= 100, "two others vote"


def test_a_process_may_have_no_queries() -> None:
    """With more processes than images."""
    bank, labels = torch.eye(4), torch.arange(4)
    ranked = weighted_knn(bank, labels, torch.empty(0, 4), 4, [1, 3])
    assert {k: tuple(classes.shape) for k, classes in ranked.items()} == {1: (0, 4), 3: (0, 4)}
