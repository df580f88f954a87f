"""Retrieval agrees with scikit-learn's average precision, for any chunk."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

from xcit.errors import InputError
from xcit.evaluation.features import Features
from xcit.evaluation.retrieval import Retrieval, average_precision

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def split() -> tuple[Features, Features]:
    """The gallery, 300 digits, and 120 queries."""
    pixels, labels = load_digits(return_X_y=True)
    vectors, classes = torch.tensor(pixels[:420], dtype=torch.float32), torch.tensor(labels[:420])
    return Features(vectors[:300], classes[:300]), Features(vectors[300:], classes[300:])


def test_the_average_precision_is_that_of_scikit_learn(split: tuple[Features, Features]) -> None:
    gallery, queries = split
    similarities = cosine_similarity(queries.vectors.numpy(), gallery.vectors.numpy())
    same = queries.labels[:, None].numpy() == gallery.labels.numpy()
    expected = [average_precision_score(s, row) for s, row in zip(same, similarities, strict=True)]
    for chunk in (None, 7):
        precisions, first = average_precision(*gallery, *queries, chunk)
        assert precisions.tolist() == pytest.approx(expected, abs=1e-6)
    assert first.tolist() == [row[s.argmax()] for row, s in zip(same, similarities, strict=True)]
    scores = Retrieval().score(gallery, queries, 10, CPU)
    assert scores["retrieval_map"] == pytest.approx(100 * np.mean(expected), abs=1e-4)
    assert scores["retrieval_recall1"] == pytest.approx(100 * first.double().mean().item())
    assert (scores["images"], scores["queries"]) == (120, 120)


def test_features_that_are_all_alike_find_nothing() -> None:
    """Their order in the gallery does not matter: the precision is the share of the class."""
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2])
    precisions, _ = average_precision(torch.ones(8, 4), labels, torch.ones(3, 4), torch.tensor([0, 1, 2]))
    assert precisions.tolist() == pytest.approx([2 / 8, 3 / 8, 3 / 8])


def test_a_query_whose_class_is_not_in_the_gallery_does_not_count(split: tuple[Features, Features]) -> None:
    gallery, queries = split
    kept = gallery.labels != 3
    without = Features(gallery.vectors[kept], gallery.labels[kept])
    scores = Retrieval().score(without, queries, 10, CPU)
    assert scores["queries"] == int((queries.labels != 3).sum()) < scores["images"] == 120
    only = Features(queries.vectors[queries.labels == 3], queries.labels[queries.labels == 3])
    with pytest.raises(InputError, match=r"^evaluate=retrieval: no validation image has an image of its class"):
        Retrieval().score(without, only, 10, CPU)
