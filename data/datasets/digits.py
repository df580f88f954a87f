"""Handwritten digits that scikit-learn ships: 1,797 real images, no download. The default data set."""

import numpy as np
from PIL import Image

from ..errors import DataError
from ..images import Images


class Digits:
    """The UCI digits, 8 × 8 grey levels, enlarged to 32 × 32; 1,437 for training and 360 for validation."""

    SIZE = 32

    def train(self) -> Images:
        return self.split(0)

    def val(self, classes: list[str] | None = None) -> Images:
        images = self.split(1)
        if classes not in (None, images.classes):
            raise DataError(f"data=digits: its classes are {', '.join(images.classes)}, not those of the model")
        return images

    def split(self, part: int) -> Images:
        # Here, as scikit-learn takes most of a second to import, which other data sets need not wait for.
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        numbers = np.arange(len(digits.target))
        chosen = train_test_split(numbers, test_size=0.2, stratify=digits.target, random_state=0)[part]
        return DigitImages(digits.images[chosen], digits.target[chosen], [str(name) for name in digits.target_names])


class DigitImages(Images):
    def __init__(self, grey: np.ndarray, labels: np.ndarray, classes: list[str]) -> None:
        self.classes = classes
        self.labels = [int(label) for label in labels]
        size = (Digits.SIZE, Digits.SIZE)
        levels = (grey * (255 / 16)).round().astype(np.uint8)  # load_digits counts from 0 to 16
        self.images = [Image.fromarray(level).resize(size, Image.Resampling.BICUBIC).convert("RGB") for level in levels]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[index], self.labels[index]
