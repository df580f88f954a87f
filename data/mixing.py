"""Mixup, CutMix and label smoothing, applied to a whole batch on the device."""

import numpy as np
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import Tensor

from xcit.errors import InputError


class Mixing:
    """Applies timm's Mixup and CutMix to a batch. All random numbers follow from the seed of the call.

    Args:
        num_classes: Number of classes of the data set.
        mixup: Alpha of mixup's Beta distribution; 0 disables mixup.
        cutmix: Alpha of CutMix's Beta distribution; 0 disables CutMix.
        switch_prob: Probability of CutMix instead of mixup if both are enabled.
        label_smoothing: Share of the target that is spread evenly over all classes.

    Raises:
        InputError: Mixup or CutMix is enabled and the data set has fewer than two classes.
    """

    def __init__(
        self, num_classes: int, *, mixup: float, cutmix: float, switch_prob: float, label_smoothing: float
    ) -> None:
        self.is_enabled = mixup > 0 or cutmix > 0
        if self.is_enabled and num_classes < 2:
            key = "cutmix" if cutmix > 0 else "mixup"
            value = cutmix if cutmix > 0 else mixup
            raise InputError(
                f"augment.{key}={value}: needs at least two classes to mix, the data set has {num_classes}"
            )
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.mixer = Mixup(
            mixup, cutmix, switch_prob=switch_prob, label_smoothing=label_smoothing, num_classes=num_classes
        )

    def check_batch_size(self, batch_size: int) -> None:
        """Raise an InputError if mixing is enabled and the batch size is odd: timm mixes image i with B - 1 - i."""
        if self.is_enabled and batch_size % 2:
            raise InputError(
                f"train.global_batch_size: gives {batch_size} images per process; mixup and CutMix need an even number"
            )

    def __call__(self, images: Tensor, labels: Tensor, seed: list[int]) -> tuple[Tensor, Tensor]:
        """Mix a batch and smooth its labels. Without mixup and CutMix the images are returned unchanged.

        Args:
            images: (B, 3, H, W), fp32. B must be even if mixing is enabled. timm writes the result into this tensor.
            labels: (B,), int64.
            seed: Seeds numpy's global generator, from which timm draws.

        Returns:
            The images, (B, 3, H, W), and the probability of each class, (B, num_classes).
        """
        if not self.is_enabled:
            return images, mixup_target(labels, self.num_classes, smoothing=self.label_smoothing)
        np.random.seed(seed)
        return self.mixer(images, labels)
