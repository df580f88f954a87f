"""Retrieval: each image looks for the images of its class in a gallery."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..device import device_for_float64
from ..engine import distributed
from ..errors import InputError
from .features import SIMILARITIES, Features, Kind


class Retrieval:
    """Mean average precision, and recall@1: validation images look for the training images of their class.

    With data=copydays, a class is a photograph and its copies, so that this is copy detection.

    Args:
        features: Features that are compared: class_token, or class_and_mean (with the mean of the patch tokens).
    """

    headline = "retrieval_map"

    def __init__(self, *, features: Kind = "class_token") -> None:
        self.features = features

    def check(self, num_training: int) -> None:
        return

    def score(self, bank: Features, queries: Features, num_classes: int, device: torch.device) -> dict[str, float]:
        place = distributed.place()
        own = slice(place["rank"], None, place["world_size"])
        vectors, labels, gallery, gallery_labels = (
            x.to(device_for_float64(device)) for x in (*(q[own] for q in queries), *bank)
        )
        found = average_precision(gallery, gallery_labels, vectors, labels)
        precisions, first = (distributed.rows_of_all(values.cpu()) for values in found)
        answered = ~precisions.isnan()
        if not answered.any():
            raise InputError("evaluate=retrieval: no validation image has an image of its class in the training split")
        return {
            "retrieval_map": 100 * precisions[answered].mean().item(),
            "retrieval_recall1": 100 * first[answered].double().mean().item(),
            "queries": int(answered.sum()),
            "images": len(queries.labels),
        }


def average_precision(
    gallery: Tensor, gallery_labels: Tensor, queries: Tensor, labels: Tensor, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """The average precision of each query, (Q,), fp64, and whether its nearest image is of its class, (Q,).

    The gallery is ranked by cosine similarity. The average precision is the mean, over the images of the query's class,
    of the share of this class among all images that are at least as similar. It is scikit-learn's, and NaN for a query
    whose class is not in the gallery.

    Args:
        gallery, gallery_labels: (N, D) and (N,).
        queries, labels: (Q, D) and (Q,).
        chunk: number of queries that are compared at once; None for one that bounds the memory.
    """
    gallery, queries = F.normalize(gallery.float(), dim=1), F.normalize(queries.float(), dim=1)
    chunk = chunk or max(1, SIMILARITIES // 8 // len(gallery))  # beside similarities there are indices and counts
    precisions, first = [queries.new_empty(0, dtype=torch.float64)], [labels.new_empty(0, dtype=torch.bool)]
    for start in range(0, len(queries), chunk):
        similarities, order = (queries[start : start + chunk] @ gallery.mT).sort(dim=1, descending=True)
        same = gallery_labels[order] == labels[start : start + chunk, None]
        # Images that are equally similar have the rank of the last of them.
        ranks = torch.searchsorted(-similarities, -similarities, right=True)
        precision = same.cumsum(dim=1).gather(1, ranks - 1).double() / ranks
        precisions.append((precision * same).sum(dim=1) / same.sum(dim=1))
        first.append(same[:, 0])
    return torch.cat(precisions), torch.cat(first)
