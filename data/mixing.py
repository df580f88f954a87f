"""Mixup, CutMix and label smoothing: what happens to a whole batch."""

import numpy as np
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import Tensor

from .errors import DataError


class Mixing:
    """timm's Mixup and CutMix for a batch, with randomness that follows from a seed.

    Args:
        mixup, cutmix: the alphas of the two Beta distributions; 0 switches either off.
        switch_prob: probability of CutMix where both are on.
        label_smoothing: share of the target spread over all classes.
    """

    def __init__(
        self, num_classes: int, *, mixup: float, cutmix: float, switch_prob: float, label_smoothing: float
    ) -> None:
        self.mixes = mixup > 0 or cutmix > 0
        if self.mixes and num_classes < 2:
            key = "cutmix" if cutmix > 0 else "mixup"
            value = cutmix if cutmix > 0 else mixup
            raise DataError(f"augment.{key}={value}: needs at least two classes to mix, the data set has {num_classes}")
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.mixer = Mixup(
            mixup, cutmix, switch_prob=switch_prob, label_smoothing=label_smoothing, num_classes=num_classes
        )

    def __call__(self, images: Tensor, labels: Tensor, seed: list[int]) -> tuple[Tensor, Tensor]:
        """(images (B, 3, H, W), labels (B,)) → (mixed images, soft targets (B, num_classes)). B is even if it mixes."""
        if not self.mixes:
            return images, mixup_target(labels, self.num_classes, smoothing=self.label_smoothing)
        np.random.seed(seed)  # timm draws from numpy's global generator
        return self.mixer(images, labels)
