"""The measures of collapse have known values for features whose shape is known."""

import math

import pytest
import torch

from xcit.evaluation.collapse import entropy, feature_std, rankme


def test_rankme_counts_the_directions_that_features_use_alike() -> None:
    axes = torch.linalg.qr(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)))[0]  # orthonormal columns
    for rank in (1, 3, 8):
        assert rankme(axes[:, :rank] @ torch.eye(rank, 8)).item() == pytest.approx(rank, rel=1e-4)
    # Singular values 3, 1: p = 3/4, 1/4.
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert rankme(axes[:, :2] * torch.tensor([3.0, 1.0])).item() == pytest.approx(expected, rel=1e-5)
    assert rankme(torch.ones(50, 8)).item() == pytest.approx(1, rel=1e-4)
    assert rankme(torch.zeros(50, 8)).item() == 1
    assert rankme(torch.full((50, 8), torch.nan)).isnan()


def test_the_standard_deviation_is_0_for_one_direction_and_1_for_all() -> None:
    axes = torch.cat([torch.eye(6), -torch.eye(6)])
    lengths = torch.arange(1.0, 13.0)[:, None]
    assert feature_std(axes * lengths).item() == pytest.approx(1, rel=1e-6)
    assert feature_std(torch.ones(12, 6) * lengths).item() == pytest.approx(0, abs=1e-6)
    # Two opposite points on one of 6 axes: one standard deviation is 1, five are 0.
    assert feature_std(axes[[0, 6]]).item() == pytest.approx(6**0.5 / 6, rel=1e-6)
    normal = torch.randn(20_000, 64, generator=torch.Generator().manual_seed(0))
    assert feature_std(normal).item() == pytest.approx(1, abs=0.01)


def test_entropy_is_in_nats_for_each_distribution() -> None:
    probabilities = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    assert entropy(probabilities).tolist() == pytest.approx([0, math.log(2), math.log(4)])
    assert entropy(probabilities.mean(dim=0)).shape == ()
