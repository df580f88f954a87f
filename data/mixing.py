"""Mixup, CutMix and label smoothing, applied to a whole batch on the device."""

from collections.abc import Sequence

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
        mix_draws: Draws of mixup or CutMix, and of its strength, in a global batch. Each one is for an equal share of
            the images, on average.

    Raises:
        InputError: Mixup or CutMix is enabled and the data set has fewer than two classes.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        mixup: float,
        cutmix: float,
        switch_prob: float,
        label_smoothing: float,
        mix_draws: int = 1,
    ) -> None:
        self.is_enabled = mixup > 0 or cutmix > 0
        if self.is_enabled and num_classes < 2:
            key = "cutmix" if cutmix > 0 else "mixup"
            value = cutmix if cutmix > 0 else mixup
            raise InputError(
                f"augment.{key}={value}: needs at least two classes to mix, the data set has {num_classes}"
            )
        self.num_classes, self.label_smoothing, self.mix_draws = num_classes, label_smoothing, mix_draws
        self.mixer = Mixup(
            mixup, cutmix, switch_prob=switch_prob, label_smoothing=label_smoothing, num_classes=num_classes
        )

    def check_batch_size(self, batch_size: int) -> None:
        """Raise an InputError if mixing is enabled and the batch size is odd: timm mixes image i with B - 1 - i."""
        if self.is_enabled and batch_size % 2:
            raise InputError(
                f"train.global_batch_size: gives {batch_size} images per process; mixup and CutMix need an even number"
            )

    def __call__(
        self, images: Tensor, labels: Tensor, seed: list[int], image_seeds: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch and smooth its labels. Without mixup and CutMix the images are returned unchanged.

        Args:
            images: (B, 3, H, W), fp32. B must be even if mixing is enabled. The result is written into this tensor.
            labels: (B,), int64.
            seed: The seed of the batch, for numpy's global generator, from which timm draws.
            image_seeds: The seed of each image. It decides which draw is for which images.

        Returns:
            The images, (B, 3, H, W), and the probability of each class, (B, num_classes).
        """
        if not self.is_enabled:
            return images, mixup_target(labels, self.num_classes, smoothing=self.label_smoothing)
        if self.mix_draws == 1:
            np.random.seed(seed)
            return self.mixer(images, labels)
        targets = images.new_empty(len(images), self.num_classes)
        for draw, rows in rows_of_draws(image_seeds, self.mix_draws).items():
            np.random.seed([*seed, draw])
            images[rows], targets[rows] = self.mixer(images[rows], labels[rows])
        return images, targets


def rows_of_draws(image_seeds: Sequence[int], draws: int) -> dict[int, list[int]]:
    """Divide a batch of a process among the draws: number of the draw → positions in the batch.

    Image i stays with image B - 1 - i, its partner in the mix. The seed of the first of them chooses the draw. So a
    pair has the same draw for any number of processes.
    """
    B = len(image_seeds)
    first: dict[int, list[int]] = {}
    for row, seed in enumerate(image_seeds[: B // 2]):
        first.setdefault(seed % draws, []).append(row)
    return {draw: [*rows, *(B - 1 - row for row in reversed(rows))] for draw, rows in first.items()}
