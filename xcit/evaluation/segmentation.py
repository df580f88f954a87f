"""Semantic segmentation: mean IoU, accuracies, a table of the classes, and pictures of the predictions."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..device import device_for_float64, in_float64
from ..engine import distributed
from ..engine.task import Details

IGNORED = -1
"""The label of pixels that count nowhere."""
PICTURES = 8

# (image, size of the original) → bands of probabilities from top to bottom: the first row and (K, rows, W).
Bands = Callable[[Tensor, tuple[int, int]], Iterator[tuple[int, Tensor]]]


class Segmentation:
    """Metrics over the labelled pixels of all images and processes, at the images' original sizes:

    - miou: the mean over the classes of intersection / union of prediction and truth, in percent.
    - pixel_accuracy: the share of pixels whose class is found, in percent.
    - mean_accuracy: the mean of this share over the classes of the truth, in percent.
    - loss: the mean cross-entropy of a pixel.
    - images.

    A class that occurs in no image, neither in the truth nor in a prediction, counts nowhere, as in mmsegmentation.

    Args:
        bands: the predictions.
        classes: the names of the classes.
        device: of the predictions.
    """

    def __init__(self, bands: Bands, classes: Sequence[str], device: torch.device) -> None:
        self.bands, self.classes = bands, classes
        # Pixels by true class (row) and predicted class (column).
        self.confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64, device=device)
        self.loss = torch.zeros((), dtype=torch.float64, device=device_for_float64(device))
        self.images = torch.zeros((), dtype=torch.int64, device=device)
        self.shown: list[tuple[Tensor, Tensor, Tensor]] = []
        """Photograph (h, w, 3), truth and prediction (h, w) of the first images, on the CPU."""

    def update(self, batch: Any) -> None:
        for image, picture, truth in zip(batch.images, batch.pictures, batch.masks, strict=True):
            predicted = self.add(image, truth.to(image.device))
            if distributed.is_main() and len(self.shown) < PICTURES:
                photograph = torch.as_tensor(picture).cpu().clone()
                size = photograph.shape[:2]
                self.shown.append((photograph, sampled(truth, size), sampled(predicted, size)))

    def add(self, image: Tensor, truth: Tensor) -> Tensor:
        """Count an image, (1, C, h, w), with its truth, (H, W); return the predicted classes, (H, W)."""
        num_classes, found = len(self.classes), []
        height, width = truth.shape
        for start, probabilities in self.bands(image, (height, width)):
            own = truth[start : start + probabilities.shape[1]]
            labelled = own != IGNORED
            predicted = probabilities.argmax(dim=0)
            pairs = num_classes * own[labelled] + predicted[labelled]
            self.confusion += torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)
            of_truth = probabilities.gather(0, own.clamp(min=0)[None])[0][labelled]
            self.loss -= in_float64(of_truth.clamp(min=torch.finfo(of_truth.dtype).tiny)).log().sum()
            found.append(predicted)
        self.images += 1
        return torch.cat(found)

    def compute(self) -> dict[str, float]:
        confusion, loss, images = map(distributed.total, (self.confusion, self.loss, self.images))
        confusion = confusion.to(device_for_float64(confusion.device))
        self.by_class = iou, accuracy, pixels = by_class(confusion)
        correct, labelled = confusion.diagonal().sum(), pixels.sum()
        return {
            "miou": iou.nanmean().item(),
            "pixel_accuracy": (100 * correct.double() / labelled).item(),
            "mean_accuracy": accuracy.nanmean().item(),
            "loss": (loss / labelled).item(),
            "images": int(images),
        }

    def details(self) -> Details:
        columns = (x.tolist() for x in self.by_class)
        rows = [
            {"class": name, "iou": iou, "accuracy": accuracy, "pixels": pixels}
            for name, iou, accuracy, pixels in zip(self.classes, *columns, strict=True)
        ]
        return Details(rows, [drawn(*shown, self.classes) for shown in self.shown])


def by_class(confusion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """IoU and accuracy in percent, and the number of labelled pixels, all (K,); NaN for classes without any.

    confusion: pixels by true class (row) and predicted class (column), (K, K).
    """
    correct, true, predicted = confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)
    return 100 * correct.double() / (true + predicted - correct), 100 * correct.double() / true, true


def sampled(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask (H, W) at another size, nearest-exact, on the CPU."""
    rows, columns = (
        (torch.arange(count, device=mask.device) + 0.5).mul(length / count).long()
        for count, length in zip(size, mask.shape, strict=True)
    )
    return mask[rows][:, columns].to(torch.int16).cpu()


def drawn(picture: Tensor, truth: Tensor, predicted: Tensor, classes: Sequence[str]) -> Any:
    """A Pillow image: the photograph, (h, w, 3), and the truth and the prediction, (h, w), drawn on it."""
    from PIL import Image  # here, since `import xcit` must not need it

    from .drawing import draw_segments, side_by_side

    photograph = Image.fromarray(picture.numpy())
    true, found = (draw_segments(photograph, mask.numpy(), classes) for mask in (truth, predicted))
    return side_by_side([("image", photograph), ("truth", true), ("prediction", found)])
