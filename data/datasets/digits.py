"""The default data set: 1,797 images of handwritten digits, which are part of scikit-learn and need no download."""

from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field

from xcit.errors import InputError

from ..examples import Example, Examples, members_of


class Digits:
    """The UCI digits: grayscale images of 8 × 8, resized to RGB images of 32 × 32.

    1,437 images are for training and 360 for validation.

    Args:
        train_fraction: Share of the training images that is used, the same share of each class, above 0 and at most 1.
    """

    SIZE = 32
    """Height and width of the resized images in pixels."""

    def __init__(self, *, train_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0) -> None:
        self.train_fraction = train_fraction

    def train(self) -> "DigitImages":
        return self.split(0)

    def val(self, classes: list[str] | None = None) -> "DigitImages":
        images = self.split(1)
        if classes not in (None, images.classes):
            raise InputError(f"data=digits: its classes are {', '.join(images.classes)}, not those of the model")
        return images

    def split(self, part: int) -> "DigitImages":
        """Return the training split (part 0) or the validation split (part 1)."""
        # scikit-learn takes most of a second to import. Importing it here spares users of other data sets the wait.
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        numbers = np.arange(len(digits.target))
        chosen = train_test_split(numbers, test_size=0.2, stratify=digits.target, random_state=0)[part]
        if part == 0 and self.train_fraction < 1:
            labels = digits.target[chosen]
            chosen, _ = train_test_split(chosen, train_size=self.train_fraction, stratify=labels, random_state=0)
        return DigitImages(digits.images[chosen], digits.target[chosen], [str(name) for name in digits.target_names])


class DigitImages(Examples):
    """One split of the digits, held in memory."""

    def __init__(self, gray: np.ndarray, labels: np.ndarray, classes: list[str]) -> None:
        """gray: (num_images, 8, 8), values from 0 to 16. labels: (num_images,), indices into classes."""
        self.classes = classes
        self.labels = [int(label) for label in labels]
        size = (Digits.SIZE, Digits.SIZE)
        levels = (gray * (255 / 16)).round().astype(np.uint8)
        self.images = [Image.fromarray(level).resize(size, Image.Resampling.BICUBIC).convert("RGB") for level in levels]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def members(self) -> list[np.ndarray]:
        return members_of(self.labels, len(self.classes))

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], self.labels[index], f"digit {index}")
