"""Measures of collapse: how much of their space a model's features use, and how sure its outputs are."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rankme(features: Tensor) -> Tensor:
    """The effective rank of features, (N, D) → a scalar from 1 to min(N, D); RankMe, Garrido et al., arXiv 2210.02885.

    It is the exponential of the entropy of the singular values, which are divided by their sum. 1 means that all
    features lie on one line. It is NaN if a feature is not finite.
    """
    if not features.isfinite().all():
        return features.new_full((), torch.nan, dtype=torch.float32)
    values = torch.linalg.svdvals(features.float())
    return entropy(values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)).exp()


def feature_std(features: Tensor) -> Tensor:
    """The spread of the directions of features, (N, D) → a scalar from 0 to 1; SimSiam, arXiv 2011.10566.

    It is the mean over the dimensions of the standard deviation over the L2-normalized features, times √D. 0 means that
    all features have one direction, and about 1 that they have all directions alike.
    """
    directions = F.normalize(features.float(), dim=1)
    return directions.std(dim=0, correction=0).mean() * features.shape[1] ** 0.5


def entropy(probabilities: Tensor) -> Tensor:
    """The entropy in nats of each distribution, (…, K) → (…): from 0 for one sure class to ln K for all alike."""
    return torch.special.entr(probabilities.float()).sum(dim=-1)
