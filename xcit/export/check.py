"""Compares an export with the model that it was made from, before it is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..prediction.answers import Head
from .formats import Run
from .program import BATCH_SIZES, Exportable, sizes_to_check

TOLERANCE = 1e-4
"""Largest difference of an output, relative to the largest output. Sums in another order differ by about 1e-6 in fp32,
and a wrong operation by more than 1e-2."""
TOLERANCE_INT8 = 0.05
"""Share of the images that may get another class or other labels; for numbers and features the largest difference of an
output, relative to the largest output. Weights and activations of 8 bits are inexact."""
NEAR_TIES = 0.001
"""Share of the images that may get another class or other labels in fp32, where outputs are almost equal."""


class DisagreementError(InputError):
    """An export computes something else than the model. It is not the user's mistake: the exporters have errors."""

    exit_status = 1


class Images(NamedTuple):
    """Images for the check and for quantization, in a batch."""

    pixels: Tensor
    """(B, H, W, C), as `Preprocessing.pixels` makes them."""
    labels: Tensor | None = None
    """(B,), the class of each image."""


@dataclass
class Agreement:
    """How far an export agrees with the model.

    Args:
        head: How outputs are read; None for features.
    """

    head: Head | None = None
    difference: float = 0.0
    """Largest difference of an output, relative to the largest output of the batch."""
    images: int = 0
    same: int = 0
    """Images that get the same class or labels."""
    labelled: int = 0
    right_before: int = 0
    """Labelled images whose class the model finds."""
    right_after: int = 0
    """Labelled images whose class the export finds."""

    def add(self, expected: Tensor, found: Tensor) -> None:
        if found.shape != expected.shape:
            raise DisagreementError(f"the export returns {tuple(found.shape)}, the model {tuple(expected.shape)}")
        scale = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        difference = ((found - expected).abs().max() / scale).item()
        self.difference = max(self.difference, difference if difference == difference else float("inf"))

    def count(self, expected: Tensor, found: Tensor, labels: Tensor | None) -> None:
        self.images += len(expected)
        before, after = (self.head.decisions(outputs) if self.head else None for outputs in (expected, found))
        if before is None or after is None:
            return
        self.same += int((before == after).all(dim=1).sum())
        if labels is not None and self.decides == "class":
            self.labelled += len(labels)
            self.right_before += int((before[:, 0] == labels).sum())
            self.right_after += int((after[:, 0] == labels).sum())

    @property
    def decides(self) -> str | None:
        """What an image gets: a "class" or "labels"; None for numbers and features."""
        return {"class": "class", "classes": "labels"}.get(self.head.kind) if self.head else None

    @property
    def changed(self) -> float:
        """The share of images that get another class or other labels; 0 for numbers and features."""
        return 1 - self.same / self.images if self.images and self.decides else 0.0

    def same_answers(self) -> dict[str, int]:
        """The number of images that get the same class or labels, for the JSON file; empty for numbers and features."""
        return {f"same_{'top1' if self.decides == 'class' else 'labels'}": self.same} if self.decides else {}

    def accuracy(self) -> dict[str, float]:
        """Top-1 in percent of the model and of the export; empty without labels."""
        if not self.labelled:
            return {}
        before, after = (100 * right / self.labelled for right in (self.right_before, self.right_after))
        return {"top1_before": before, "top1_after": after}


@torch.inference_mode()
def on_random_pixels(reference: Exportable, run: Run, patch_size: int) -> tuple[Agreement, dict[str, Any]]:
    """Compare at three sizes and two batch sizes. Returns also what was compared, for the JSON file."""
    agreement, sizes = Agreement(), sizes_to_check(reference.preprocessing.size, patch_size)
    for size in sizes:
        for batch_size in BATCH_SIZES:
            images = reference.random(batch_size, size)
            agreement.add(reference(images), run(images))
    return agreement, {"sizes": [list(size) for size in sizes], "batch_sizes": list(BATCH_SIZES)}


@torch.inference_mode()
def on_images(reference: Exportable, run: Run, batches: Sequence[Images], head: Head | None) -> Agreement:
    """Compare on images."""
    agreement = Agreement(head)
    for pixels, labels in batches:
        images = reference.takes(pixels)
        expected, found = reference(images), run(images)
        agreement.add(expected, found)
        agreement.count(expected, found, labels)
    return agreement


def require_agreement(random: Agreement, images: Agreement, tolerance: float, *, int8: bool) -> None:
    """Refuse an export that differs too much.

    In 8 bits only the answers for images count: their class or labels, or else their outputs. Random pixels have other
    activations than those that the ranges were measured on.

    Raises:
        DisagreementError: it does.
    """
    difference = images.difference if int8 else max(random.difference, images.difference)
    if not (int8 and images.decides) and difference > tolerance:
        raise DisagreementError(
            f"the export's outputs differ from the model's by {difference:.1e} of the largest one, more than "
            f"tolerance={tolerance:g}; it is not kept"
        )
    most = tolerance if int8 else NEAR_TIES
    if images.changed > most:
        key = f"tolerance={tolerance:g}" if int8 else f"a share of {NEAR_TIES:g}"
        raise DisagreementError(
            f"the export finds {'another class' if images.decides == 'class' else 'other labels'} than the model for "
            f"{images.images - images.same} of {images.images} images, more than {key}; it is not kept"
        )
