"""Compares an export with the model that it was made from, before it is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from .formats import Run
from .program import BATCH_SIZES, Exportable, sizes_to_check

TOLERANCE = 1e-4
"""Largest difference of an output, relative to the largest output. Sums in another order differ by about 1e-6 in fp32,
and a wrong operation by more than 1e-2."""
TOLERANCE_INT8 = 0.05
"""Share of the images whose largest output may be another one. Weights and activations of 8 bits are inexact."""
NEAR_TIES = 0.001
"""Share of the images whose largest output may be another one in fp32, where two outputs are almost equal."""


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
    """How far an export agrees with the model."""

    difference: float = 0.0
    """Largest difference of an output, relative to the largest output of the batch."""
    images: int = 0
    same_top1: int = 0
    """Images whose largest output is the same."""
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
        before, after = expected.argmax(dim=1), found.argmax(dim=1)
        self.images += len(before)
        self.same_top1 += int((before == after).sum())
        if labels is not None:
            self.labelled += len(labels)
            self.right_before += int((before == labels).sum())
            self.right_after += int((after == labels).sum())

    @property
    def changed(self) -> float:
        """The share of images whose largest output is another one."""
        return 1 - self.same_top1 / self.images if self.images else 0.0

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
def on_images(reference: Exportable, run: Run, batches: Sequence[Images]) -> Agreement:
    """Compare on images."""
    agreement = Agreement()
    for pixels, labels in batches:
        images = reference.takes(pixels)
        expected, found = reference(images), run(images)
        agreement.add(expected, found)
        agreement.count(expected, found, labels)
    return agreement


def require_agreement(random: Agreement, images: Agreement, tolerance: float, *, int8: bool) -> None:
    """Refuse an export that differs too much.

    Raises:
        DisagreementError: it does.
    """
    difference = max(random.difference, images.difference)
    if not int8 and difference > tolerance:
        raise DisagreementError(
            f"the export's outputs differ from the model's by {difference:.1e} of the largest one, more than "
            f"tolerance={tolerance:g}; it is not kept"
        )
    most = tolerance if int8 else NEAR_TIES
    if images.changed > most:
        key = f"tolerance={tolerance:g}" if int8 else f"a share of {NEAR_TIES:g}"
        raise DisagreementError(
            f"the export finds another class than the model for {images.images - images.same_top1} of {images.images} "
            f"images, more than {key}; it is not kept"
        )
