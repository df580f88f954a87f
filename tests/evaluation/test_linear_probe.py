"""The linear probe agrees with torch's SGD on a linear layer, and about with logistic regression."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

from xcit.evaluation.features import Features
from xcit.evaluation.linear_probe import LinearProbe, train_classifiers

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def split() -> tuple[Features, Features]:
    """1,000 digits for training and 797 for validation."""
    pixels, labels = load_digits(return_X_y=True)
    vectors, classes = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    return Features(vectors[:1000], classes[:1000]), Features(vectors[1000:], classes[1000:])


def test_each_classifier_is_what_sgd_makes_of_a_linear_layer(split: tuple[Features, Features]) -> None:
    vectors, labels = split[0]
    rates, epochs, batch_size = [0.01, 0.3], 3, 64
    trained = train_classifiers(vectors, labels, 10, rates, epochs, batch_size, torch.Generator().manual_seed(5))
    for number, rate in enumerate(rates):
        random = torch.Generator().manual_seed(5)
        layer = nn.Linear(64, 10)
        nn.init.zeros_(layer.bias)
        layer.weight.data = torch.randn(10, 64, generator=random) * 0.01
        optimizer = torch.optim.SGD(layer.parameters(), rate, momentum=0.9)
        updates = epochs * math.ceil(1000 / batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
        for _ in range(epochs):
            for batch in torch.randperm(1000, generator=random).split(batch_size):
                optimizer.zero_grad()
                nn.functional.cross_entropy(layer(vectors[batch]), labels[batch]).backward()
                optimizer.step()
                schedule.step()
        torch.testing.assert_close(trained.weights[number], layer.weight, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(trained.biases[number], layer.bias, atol=1e-5, rtol=1e-4)


def test_the_probe_is_about_as_good_as_logistic_regression_and_the_same_for_a_seed(
    split: tuple[Features, Features],
) -> None:
    bank, queries = split
    scores = LinearProbe(epochs=30).score(bank, queries, 10, CPU)
    regression = LogisticRegression(max_iter=1000).fit(bank.vectors.numpy(), bank.labels.numpy())
    expected = 100 * regression.score(queries.vectors.numpy(), queries.labels.numpy())
    assert scores["linear_top1"] == pytest.approx(expected, abs=2)
    assert scores["linear_top1"] == scores[f"linear_top1@lr{scores['linear_lr']:g}"]
    assert scores["linear_top1"] <= scores["linear_top5"] <= 100
    assert scores["images"] == 797
    assert LinearProbe(epochs=30).score(bank, queries, 10, CPU) == scores
    assert LinearProbe(epochs=30, seed=1).score(bank, queries, 10, CPU) != scores


def test_validation_images_do_not_choose_the_rate(split: tuple[Features, Features]) -> None:
    """The labels of the validation images are wrong, so the rate that learns least is the best one on them."""
    bank, queries = split
    wrong = Features(queries.vectors, (queries.labels + 1) % 10)
    scores = LinearProbe(lr=[1e-9, 0.3], epochs=5).score(bank, wrong, 10, CPU)
    assert scores["linear_lr"] == 0.3
    assert scores["linear_top1"] == scores["linear_top1@lr0.3"] < scores["linear_top1@lr1e-09"]
