"""Mixup, CutMix and label smoothing, applied to a whole batch on the device."""

from collections.abc import Sequence

import numpy as np
import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import Tensor

from xcit.errors import InputError


class Mixing:
    """Applies timm's Mixup and CutMix to a batch. All random numbers follow from the seed of the call.

    Args:
        num_classes: Number of classes, labels or values of the data set.
        mixup: Alpha of mixup's Beta distribution; 0 disables mixup.
        cutmix: Alpha of CutMix's Beta distribution; 0 disables CutMix.
        switch_prob: Probability of CutMix instead of mixup if both are enabled.
        label_smoothing: Share of the target that is spread evenly over all classes, if each image has one class.
        mix_draws: Draws of mixup or CutMix, and of its strength, in a global batch. Each one is for an equal share of
            the images, on average.
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
        self.setting = f"augment.cutmix={cutmix}" if cutmix > 0 else f"augment.mixup={mixup}"
        self.num_classes, self.label_smoothing, self.mix_draws = num_classes, label_smoothing, mix_draws
        self.mixer = Mixup(
            mixup, cutmix, switch_prob=switch_prob, label_smoothing=label_smoothing, num_classes=num_classes
        )

    def check_kind(self, target_kind: str) -> None:
        """Raise an InputError if mixing is enabled and the images have one class each, the same for all."""
        if self.is_enabled and target_kind == "class" and self.num_classes < 2:
            needs = f"a classifier needs two or more ({self.setting} mixes them)"
            raise InputError(f"data: the training images have one class, and {needs}")

    def check_batch_size(self, batch_size: int) -> None:
        """Raise an InputError if mixing is enabled and the batch size is odd: timm mixes image i with B - 1 - i."""
        if self.is_enabled and batch_size % 2:
            raise InputError(
                f"train.global_batch_size: gives {batch_size} images per process; mixup and CutMix need an even number"
            )

    def __call__(
        self, images: Tensor, labels: Tensor, weights: Tensor, seed: list[int], image_seeds: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mix a batch, and smooth its labels if they are classes. Without mixup and CutMix the images stay unchanged.

        Args:
            images: (B, 3, H, W), fp32. B must be even if mixing is enabled. The result is written into this tensor.
            labels: The class of each image, (B,), int64; or a number for each label or value, (B, num_classes), fp32.
            weights: The weight of each image, (B,), fp32.
            seed: The seed of the batch, for numpy's global generator, from which timm draws.
            image_seeds: The seed of each image. It decides which draw is for which images.

        Returns:
            The images, (B, 3, H, W); the probability of each class, or the mixed labels or values, (B, num_classes);
            and the mixed weights, (B,). What is NaN in one of two images is NaN in their mix.
        """
        if not self.is_enabled:
            return images, self.mixed_targets(labels, 1.0), weights
        if self.mix_draws == 1:
            np.random.seed(seed)
            return self.mix(images, labels, weights)
        targets, mixed = images.new_empty(len(images), self.num_classes), torch.empty_like(weights)
        for draw, listed in rows_of_draws(image_seeds, self.mix_draws).items():
            np.random.seed([*seed, draw])
            rows = index_on(images.device, listed)
            images[rows], targets[rows], mixed[rows] = self.mix(images[rows], labels[rows], weights[rows])
        return images, targets, mixed

    def mix(self, images: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mix with one draw. The arguments are those of a call."""
        lam = self.mixer._mix_batch(images)  # not timm's __call__, which returns the mixed classes and not the share
        return images, self.mixed_targets(labels, lam), torch.lerp(weights.flip(0), weights, float(lam))

    def mixed_targets(self, labels: Tensor, lam: float) -> Tensor:
        """The targets of images of which each has the share lam of itself and the rest of its partner."""
        if labels.ndim == 1:
            return mixup_target(labels, self.num_classes, lam, self.label_smoothing)
        return labels if lam == 1.0 else lam * labels + (1.0 - lam) * labels.flip(0)


def index_on(device: torch.device, rows: Sequence[int]) -> Tensor:
    """The rows as a tensor. A copy to a GPU from memory that is not pinned would wait for all work before it."""
    index = torch.tensor(rows)
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index


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
