"""Weighted k-nearest-neighbour classification of features (Wu et al., arXiv 1805.01978), as DINO evaluates them."""

from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..engine import distributed
from ..errors import InputError
from ..number_types import PositiveInt
from .features import SIMILARITIES, Features, Kind

DEFAULT_K = (20, 10, 100, 200)
"""DINO's numbers of neighbours; 20 is best in its paper."""
RANKED = 5
"""Number of classes that are ranked for each image: enough for top-5."""


class KNN:
    """Top-1 and top-5 of weighted k-NN: the training images vote for the classes of the validation images.

    Args:
        features: Features that are compared: class_token, or class_and_mean (with the mean of the patch tokens).
        k: Numbers of neighbours, the first one for the headline; null: 20, 10, 100, 200, as far as there are images.
        temperature: Temperature of the votes, exp(similarity / temperature).
    """

    headline = "knn_top1"

    def __init__(
        self,
        *,
        features: Kind = "class_token",
        k: Annotated[list[PositiveInt], Field(min_length=1)] | None = None,
        temperature: Annotated[float, Field(gt=0)] = 0.07,
    ) -> None:
        self.features, self.k, self.temperature = features, k or [], temperature

    def check(self, num_training: int) -> None:
        self.k = self.k or [k for k in DEFAULT_K if k <= num_training] or [num_training]
        require_neighbours(self.k, num_training, "evaluate.k")

    def score(self, bank: Features, queries: Features, num_classes: int, device: torch.device) -> dict[str, float]:
        place = distributed.place()
        own = slice(place["rank"], None, place["world_size"])
        vectors, bank_vectors, bank_labels = (x.to(device) for x in (queries.vectors[own], *bank))
        ranked = weighted_knn(bank_vectors, bank_labels, vectors, num_classes, self.k, self.temperature)
        scores: dict[str, float] = {}
        for k, classes in ranked.items():
            hits = distributed.rows_of_all(classes.cpu() == queries.labels[own, None]).float().mean(dim=0)
            scores |= {f"knn_top1@k{k}": 100 * hits[0].item(), f"knn_top5@k{k}": 100 * hits.sum().item()}
        first = {f"knn_{metric}": scores[f"knn_{metric}@k{self.k[0]}"] for metric in ("top1", "top5")}
        return first | scores | {"images": len(queries.labels)}


def weighted_knn(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    num_classes: int,
    k: Sequence[int],
    temperature: float = 0.07,
    chunk: int | None = None,
) -> dict[int, Tensor]:
    """The most likely classes of each query, the likeliest first: k → (Q, at most 5). -1 stands for no further class.

    The k features of the bank that are most similar to a query vote for their classes. A vote weighs
    exp(similarity / temperature), and the similarity is the cosine. The result is exact for any chunk.

    Args:
        bank: features of known classes, (N, D).
        bank_labels: their classes, (N,), int64.
        queries: features to classify, (Q, D).
        num_classes: number of classes.
        k: numbers of neighbours, each at most N.
        temperature: a lower one gives the nearest neighbours more weight.
        chunk: number of queries that are compared at once; None for one that bounds the memory.

    Raises:
        InputError: a k is larger than the bank.
    """
    require_neighbours(k, len(bank), "k")
    found: dict[int, list[Tensor]] = {number: [] for number in k}
    for similarities, neighbours in nearest(bank, queries, max(k), chunk):
        for number, ranked in found.items():
            votes = similarities[:, :number], bank_labels[neighbours[:, :number]]
            ranked.append(rank_classes(*votes, num_classes, temperature))
    return {number: torch.cat(ranked) for number, ranked in found.items()}


def require_neighbours(k: Sequence[int], available: int, key: str) -> None:
    """Refuse a k that is larger than the bank. key: what the user gives it as."""
    if max(k) > available:
        raise InputError(f"{key}={max(k)}: must be at most {available}, the number of images whose classes are known")


def leave_one_out_knn(
    features: Tensor, labels: Tensor, k: int = 20, temperature: float = 0.07, chunk: int | None = None
) -> float:
    """Top-1 accuracy in percent of `weighted_knn` if each image is classified by all others of the same set.

    Args:
        features: (N, D), N at least 2.
        labels: (N,), int64, from 0.
        k: number of neighbours; if there are fewer others, all of them.
        temperature, chunk: see `weighted_knn`.
    """
    k, num_classes = min(k, len(features) - 1), int(labels.max()) + 1
    hits = [
        rank_classes(similarities, labels[neighbours], num_classes, temperature)[:, 0]
        for similarities, neighbours in nearest(features, features, k, chunk, skip_itself=True)
    ]
    return 100 * (torch.cat(hits) == labels).float().mean().item()


def nearest(
    bank: Tensor, queries: Tensor, k: int, chunk: int | None = None, skip_itself: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each chunk of queries, the cosine similarities of the k nearest of the bank and their indices, both (B, k).

    The nearest comes first. skip_itself: query i is number i of the bank, which is not its neighbour.
    """
    bank, queries = F.normalize(bank.float(), dim=1), F.normalize(queries.float(), dim=1)
    chunk = chunk or max(1, SIMILARITIES // len(bank))
    for start in range(0, max(1, len(queries)), chunk):  # without queries, one chunk without rows
        similarities = queries[start : start + chunk] @ bank.mT
        if skip_itself:
            similarities.diagonal(start).fill_(-torch.inf)
        values, indices = similarities.topk(k)
        yield values, indices


def rank_classes(similarities: Tensor, labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    """The classes with the most votes, (B, at most 5), the first one first; -1 where no vote is left.

    similarities, labels: of the neighbours, (B, k), the nearest first.
    """
    # Divided by the weight of the nearest, so that no temperature overflows. The order stays the same.
    weights = ((similarities - similarities[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(weights), num_classes).scatter_add_(1, labels, weights)
    best = votes.topk(min(RANKED, num_classes))
    return best.indices.where(best.values > 0, -1)
