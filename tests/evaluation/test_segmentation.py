"""Metrics of segmentation against scikit-learn's, with ignored pixels and absent classes, and the report's details."""

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score, recall_score
from torch import Tensor

from xcit.evaluation import drawing, segmentation
from xcit.evaluation.segmentation import Segmentation

from ..conftest import in_two_processes

CLASSES = ("sky", "tree", "road", "car", "boat", "absent")
CPU = torch.device("cpu")


def two_bands(image: Tensor, original: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
    """Takes the image for the probabilities."""
    assert image.shape[2:] == original
    yield 0, image[0, :, :5]
    yield 5, image[0, :, 5:]


def example(seed: int) -> tuple[Tensor, Tensor]:
    """Probabilities, (1, K, H, W), and a mask with ignored pixels. No pixel is a boat; some are taken for one."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, len(CLASSES), 9 + seed, 13, generator=generator)
    logits[:, 5] = -100.0
    return logits.softmax(dim=1), torch.randint(-1, 4, logits.shape[2:], generator=generator)


def batch(seeds: range) -> SimpleNamespace:
    images, masks = zip(*map(example, seeds), strict=True)
    return SimpleNamespace(
        images=images, masks=masks, pictures=[torch.full((4, 6, 3), 9, dtype=torch.uint8)] * len(seeds)
    )


def measured(*batches: SimpleNamespace) -> tuple[Segmentation, dict[str, float]]:
    evaluator = Segmentation(two_bands, CLASSES, CPU)
    for one in batches:
        evaluator.update(one)
    return evaluator, evaluator.compute()


def test_metrics_are_scikit_learns() -> None:
    evaluator, found = measured(batch(range(2)), batch(range(2, 5)))
    examples = [example(seed) for seed in range(5)]
    truth = np.concatenate([mask[mask >= 0].numpy() for _, mask in examples])
    probabilities = np.concatenate([p[0].permute(1, 2, 0)[mask >= 0].numpy() for p, mask in examples])
    predicted = probabilities.argmax(axis=1)

    assert np.array_equal(evaluator.confusion.numpy(), confusion_matrix(truth, predicted, labels=range(6)))
    occurring = jaccard_score(truth, predicted, labels=range(5), average=None)
    assert occurring[4] == 0, "a class that occurs only in predictions counts"
    recalls = recall_score(truth, predicted, labels=range(4), average=None)
    assert found["miou"] == pytest.approx(100 * occurring.mean(), rel=1e-12)
    assert found["mean_accuracy"] == pytest.approx(100 * recalls.mean(), rel=1e-12)
    assert found["pixel_accuracy"] == pytest.approx(100 * (truth == predicted).mean(), rel=1e-12)
    assert found["loss"] == pytest.approx(-np.log(probabilities[np.arange(len(truth)), truth]).mean(), rel=1e-6)
    assert found["images"] == 5 and isinstance(found["images"], int)

    rows = with_drawing(evaluator).per_class
    assert [row["class"] for row in rows] == list(CLASSES)
    assert [row["pixels"] for row in rows] == np.bincount(truth, minlength=6).tolist()
    assert [row["iou"] for row in rows[:5]] == pytest.approx(100 * occurring, rel=1e-12)
    assert [row["accuracy"] for row in rows[:4]] == pytest.approx(100 * recalls, rel=1e-12)
    assert math.isnan(rows[4]["accuracy"]) and math.isnan(rows[5]["iou"]) and math.isnan(rows[5]["accuracy"])


def with_drawing(evaluator: Segmentation) -> Any:
    """The details, with drawings of the masks' size, of one color a class."""

    def draw_segments(picture: Image.Image, mask: np.ndarray, classes: tuple[str, ...]) -> Image.Image:
        assert picture.size == mask.shape[::-1] and tuple(classes) == CLASSES
        gray = np.uint8(20 * (mask + 1))
        return Image.fromarray(np.stack([gray] * 3, axis=-1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "draw_segments", draw_segments)
        return evaluator.details()


def test_pictures_show_photograph_truth_and_prediction_of_the_first_images() -> None:
    evaluator, _ = measured(batch(range(3)), batch(range(3, 10)))
    pictures = with_drawing(evaluator).pictures
    assert len(pictures) == 8 and len({picture.size for picture in pictures}) == 1
    probabilities, mask = example(0)
    # Each picture is below its caption, which is wider here.
    pixels, font = np.asarray(pictures[0])[..., 0], drawing.font_for(pictures[0])
    assert pixels.shape[0] == drawing.text_size(font, "")[1] + 4
    starts = np.cumsum([0, *(drawing.text_size(font, caption)[0] for caption in ("image", "truth", "prediction"))])
    image, truth, prediction = (pixels[-4:, start : start + 6] for start in starts[:-1])
    rows, columns = [1, 3, 5, 7], [1, 3, 5, 7, 9, 11]  # the pixels of the mask below the photograph's
    assert (image == 9).all()
    assert np.array_equal(truth, 20 * (mask.numpy()[rows][:, columns] + 1))
    assert np.array_equal(prediction, 20 * (probabilities[0].argmax(dim=0).numpy()[rows][:, columns] + 1))


def test_without_labelled_pixels_the_metrics_are_undefined() -> None:
    one = batch(range(1))
    one.masks[0].fill_(-1)
    _, found = measured(one)
    assert found.pop("images") == 1 and all(math.isnan(value) for value in found.values())


def measure_in_two(rank: int, folder: str) -> None:
    _, whole = measured(batch(range(5)))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for own in (range(3), range(3, 5)), (range(5), range(0)):
        evaluator, found = measured(*([batch(own[rank])] if own[rank] else []))
        assert found.pop("loss") == pytest.approx(whole["loss"], rel=1e-14)
        assert found == {name: value for name, value in whole.items() if name != "loss"}
        assert len(evaluator.shown) == (0 if rank else len(own[0]))
        assert with_drawing(evaluator).per_class[0]["pixels"] > 0
    dist.destroy_process_group()


def test_metrics_are_exact_over_two_processes(tmp_path: Path) -> None:
    in_two_processes(measure_in_two, tmp_path)


def test_a_probability_of_0_does_not_make_the_loss_infinite() -> None:
    evaluator = Segmentation(lambda image, original: iter([(0, image)]), ("a", "b"), CPU)
    evaluator.add(torch.tensor([1.0, 0.0])[:, None, None], torch.tensor([[1]]))
    assert math.isfinite(evaluator.compute()["loss"])
    assert segmentation.IGNORED == -1
