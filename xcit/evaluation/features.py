"""Frozen features of all images of a data set."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..engine import distributed
from ..engine.numerics import autocast
from ..engine.progress import Batches, Progress
from ..errors import InputError, print_note
from ..models.xcit import XCiT
from .resolutions import Measure, Measured

Kind = Literal["class_token", "class_and_mean"]
SIMILARITIES = 2**26
"""Number of similarities of images that are in memory at once."""


class Features(NamedTuple):
    """The images of a data set, in its order. On the CPU."""

    vectors: Tensor
    """(N, D), fp32."""
    labels: Tensor
    """(N,), int64: the class of each image."""


class OfFeatures(Protocol):
    """Measures frozen features of a validation split with those of the training split, the bank."""

    features: Kind
    """Which features it measures."""
    headline: str
    """The metric that a picture shows; higher is better."""

    def check(self, num_training: int) -> None:
        """Raise an InputError if the options are wrong for this number of training images."""

    def score(self, bank: Features, queries: Features, num_classes: int, device: torch.device) -> dict[str, float]:
        """Metrics by name, among them "images", the number of queries. All processes call it with all features."""
        ...


def by_features(
    method: OfFeatures,
    batches_at: Mapping[str, Callable[[int], Batches[Any]]],
    num_classes: int,
    device: torch.device,
    precision: str,
    progress: Progress,
) -> Measure:
    """Measures a backbone by its frozen features, as `sweep` asks for it.

    batches_at: makes the evaluation batches of a resolution, of the training and then of the validation split.
    """

    def measure(model: nn.Module, resolution: int, what: str) -> Measured:
        bank, queries = (
            extract(model, progress.track(batches(resolution), f"{what}, {split}"), device, precision, method.features)
            for split, batches in batches_at.items()
        )
        progress.begin(f"{what}, {method.headline}")
        scores = method.score(bank, queries, num_classes, device)
        progress.end()
        return Measured(scores)

    return measure


@torch.no_grad()
def extract(
    model: nn.Module, batches: Iterable[Any], device: torch.device, precision: str = "fp32", kind: Kind = "class_token"
) -> Features:
    """The features of all images, in every process; see `features_of`.

    Args:
        model: an XCiT or a model of timm, on the device.
        batches: of this process, as `EvalBatches` spreads them, with `images` and `labels`.
        precision: of the forward pass.
    """
    was_training = model.training
    model.eval()
    vectors, labels = [], []
    for batch in batches:
        with autocast(device, precision):
            found = features_of(model, batch.images, kind)
        vectors.append(found.float().cpu())
        labels.append(batch.labels.cpu())
    model.train(was_training)
    if not vectors:  # more processes than images
        vectors, labels = [torch.empty(0, 0)], [torch.empty(0, dtype=torch.long)]
    features = Features(distributed.rows_of_all(torch.cat(vectors)), distributed.rows_of_all(torch.cat(labels)))
    broken = int((~features.vectors.isfinite()).any(dim=1).sum())
    if broken and distributed.is_main():
        print_note(f"the features of {broken:,} of {len(features.labels):,} images are not finite at {precision}")
    return features


def features_of(model: nn.Module, images: Tensor, kind: Kind) -> Tensor:
    """The features of a batch, (B, D).

    Args:
        kind: "class_token" for what the classifier gets: the class token, or in a model without one the pooled
            features. "class_and_mean" for the class token and the mean of the patch tokens, D = 2C, as DINO's
            `avgpool_patchtokens`.

    Raises:
        InputError: "class_and_mean" is for models with a class token.
    """
    if kind == "class_and_mean":
        tokens = model.forward_features(images)  # type: ignore[operator]
        prefix = getattr(model, "num_prefix_tokens", 0)
        if not prefix or tokens.ndim != 3:
            raise InputError(f"features=class_and_mean: {type(model).__name__} has no class token; use class_token")
        return torch.cat([tokens[:, 0], tokens[:, prefix:].mean(dim=1)], dim=1)
    if isinstance(model, XCiT):
        tokens = model.forward_features(images, model.global_pool == "token")  # skips what only patches need
    else:
        tokens = model.forward_features(images)  # type: ignore[operator]
    features: Tensor = model.forward_head(tokens, pre_logits=True)  # type: ignore[operator]
    return features
