"""Images with several labels or numbers, some of them unknown, and with weights: from the example to the batch."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import Mixup

from data.examples import Example, Examples, target_statistics
from data.loader import EvalLoader, TrainLoader
from data.mixing import Mixing
from data.samplers import TrainBatches
from data.transforms import TrainTransform
from data.views.labelled_crop import CenterLabelledCrop, LabelledImages, RandomLabelledCrop
from xcit.errors import InputError
from xcit.preprocessing import Preprocessing

CPU = torch.device("cpu")
BOTH = {"mixup": 0.8, "cutmix": 1.0, "switch_prob": 0.5, "label_smoothing": 0.0}
NEITHER = BOTH | {"mixup": 0.0, "cutmix": 0.0}


class Numbers(Examples):
    """Eight images of one gray each. Their values are this gray, and 1 or NaN; even ones weigh more."""

    target_kind = "values"
    classes: ClassVar = ["gray", "other"]

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Example:
        target = np.array([index, np.nan if index == 3 else 1.0], dtype=np.float32)
        return Example(Image.new("RGB", (16, 16), (index,) * 3), target, str(index), 1.5 if index % 2 == 0 else 0.5)


def training_batch(mixing: dict, workers: int = 0, mix_draws: int = 1) -> LabelledImages:
    plain = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0, "color_jitter": 0.0, "erase_prob": 0.0}
    transform = TrainTransform(Preprocessing(size=(16, 16)), **plain, rand_augment=None)
    view = RandomLabelledCrop(transform, Mixing(2, **mixing, mix_draws=mix_draws))
    order = TrainBatches(8, 8, seed=3)
    (batch,) = TrainLoader(Numbers(), [view], order, epochs=1, workers=workers, device=CPU).epoch(0)
    return batch


@pytest.mark.parametrize(
    ("offset", "spread", "line"),
    [
        (1.6e9, 1000.0, r"'gray' has a standard deviation of 2.29e\+03 .* steps of 128 there; subtract a number near"),
        (1.6e9, 1.0, "'gray' needs at least two different numbers in the training images, in 32-bit floating point"),
        (1.6e9, 1e6, None),
        (0.0, 1e-6, None),
    ],
)
def test_numbers_that_differ_by_too_little_for_their_size_are_refused(
    offset: float, spread: float, line: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = np.array([[offset + spread * index, index] for index in range(8)]).astype(np.float32)
    monkeypatch.setattr(Numbers, "label_table", table)
    if line is None:
        assert target_statistics(Numbers())["std"][0] == pytest.approx(spread * np.std(range(8)), rel=1e-3)
        return
    with pytest.raises(InputError, match=f"^data: {line}"):
        target_statistics(Numbers())


@pytest.mark.parametrize("workers", [0, 2])
def test_values_and_weights_stay_with_their_images(workers: int) -> None:
    batch = training_batch(NEITHER, workers)
    assert (batch.targets.dtype, batch.weights.dtype) == (torch.float32, torch.float32)
    index = batch.labels[:, 0]
    assert sorted(index.tolist()) == list(range(8))
    rank = batch.images.mean((1, 2, 3)).argsort().argsort()
    assert torch.equal(rank.float(), index), "the brightness of each image is its first value"
    assert torch.equal(batch.weights, 1.5 - index % 2)
    assert torch.equal(batch.targets[:, 1].isnan(), index == 3)
    torch.testing.assert_close(batch.targets, batch.labels, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("mix_draws", [1, 2])
def test_targets_and_weights_are_mixed_as_the_images_are(mix_draws: int) -> None:
    plain, batch = training_batch(NEITHER), training_batch(BOTH, mix_draws=mix_draws)
    torch.testing.assert_close(batch.labels, plain.labels, equal_nan=True)
    brightness = plain.images.mean((1, 2, 3))
    lowest, step = brightness.min(), (brightness.max() - brightness.min()) / 7
    shown = (batch.images.mean((1, 2, 3)) - lowest) / step
    assert not torch.allclose(batch.targets[:, 0], batch.labels[:, 0]), "something was mixed"
    torch.testing.assert_close(batch.targets[:, 0], shown, rtol=1e-4, atol=1e-3)
    share = (shown - plain.labels.flip(0)[:, 0]) / (plain.labels - plain.labels.flip(0))[:, 0]
    torch.testing.assert_close(
        batch.weights, torch.lerp(plain.weights.flip(0), plain.weights, share), rtol=1e-4, atol=1e-3
    )
    unknown = plain.labels[:, 1].isnan()
    assert torch.equal(batch.targets[:, 1].isnan(), unknown | unknown.flip(0))


def test_mixed_classes_are_timms_and_equal_weights_stay_exactly_one() -> None:
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8)
    mixing = Mixing(8, **BOTH | {"label_smoothing": 0.1})
    timms = Mixup(0.8, 1.0, switch_prob=0.5, label_smoothing=0.1, num_classes=8)
    for step in range(20):
        mixed, targets, weights = mixing(images.clone(), labels, torch.ones(8), [step], range(8))
        np.random.seed([step])
        its_images, its_targets = timms(images.clone(), labels)
        assert torch.equal(mixed, its_images) and torch.equal(targets, its_targets)
        assert torch.equal(weights, torch.ones(8))


def test_evaluation_keeps_the_numbers_as_they_are() -> None:
    view = CenterLabelledCrop(Preprocessing(size=(16, 16)), 2)
    (batch,) = EvalLoader(Numbers(), view, 8, workers=0, device=CPU)
    wanted = torch.tensor(np.stack([Numbers()[index].target for index in range(8)]))
    torch.testing.assert_close(batch.targets, wanted, equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(batch.labels, wanted, equal_nan=True, rtol=0, atol=0)
