"""Pixels after 3-Augment, color jitter, normalization, resizing and random erasing."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from data.datasets.digits import Digits
from data.examples import Example, Examples, View
from data.mixing import Mixing
from data.transforms import TrainTransform, gray_solarize_or_blur
from data.viewed_examples import ViewedExamples, ViewedSample
from data.views.labelled_crop import CenterLabelledCrop, RandomLabelledCrop
from xcit.errors import InputError
from xcit.preprocessing import Preprocessing

# Options that leave the image unchanged. Each test enables only the augmentation that it checks.
PLAIN = {
    "scale": (1.0, 1.0),
    "ratio": (1.0, 1.0),
    "hflip": 0.0,
    "color_jitter": 0.0,
    "rand_augment": None,
    "erase_prob": 0.0,
}
SIZE = 24
CPU = torch.device("cpu")


def picture() -> Image.Image:
    """Make an image of colored noise over the whole range, in which every kind of change is visible."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, size=(SIZE, SIZE, 3), dtype=np.uint8))


UNSCALED = Preprocessing(size=(SIZE, SIZE), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def pixels(image: Image.Image) -> Tensor:
    return pil_to_tensor(image) / 255


def view_of(transform: TrainTransform) -> RandomLabelledCrop:
    """Return a view that applies only the transform, without mixing."""
    return RandomLabelledCrop(transform, Mixing(1, mixup=0, cutmix=0, switch_prob=0, label_smoothing=0))


def on_device(view: View, sample: object, seed: int) -> Tensor:
    """Return the input of the model for one sample, (3, H, W)."""
    return view.to_device(view.collate([sample]), CPU, [seed], [0]).images[0]


def samples(transform: TrainTransform, count: int = 300) -> list[Tensor]:
    """Transform the picture with the seeds 0, 1, …, as a worker does."""

    class One(Examples):
        classes: ClassVar = ["noise"]

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Example:
            return Example(picture(), 0, "noise")

    view = view_of(transform)
    viewed = ViewedExamples(One(), view, replace=False)
    items = [viewed[0, seed] for seed in range(count)]
    return [on_device(view, item.sample, item.seed) for item in items if isinstance(item, ViewedSample)]


def whole(view: View, image: Image.Image) -> Tensor:
    """Return the input of the model for one image, (3, H, W)."""
    return on_device(view, view.sample(Example(image, 0, "image")), 0)


def kind(sample: Tensor) -> str:
    """Find out from the pixels which operation of 3-Augment was applied."""
    gray = pixels(ImageOps.grayscale(picture()).convert("RGB"))
    plain = pixels(picture())
    if torch.equal(sample, gray):
        return "gray"
    inverted = torch.where(plain * 255 >= 127.5, 1 - plain, plain)
    if torch.allclose(sample, inverted, atol=1e-6):
        return "solarize"
    blurs = (
        pixels(picture().filter(ImageFilter.GaussianBlur(radius))) for radius in np.linspace(0.1, 2.0, 96).tolist()
    )
    return "blur" if min((sample - blurred).abs().mean().item() for blurred in blurs) < 0.01 else "none of them"


def test_three_augment_is_always_one_of_the_three_and_each_as_often() -> None:
    counts = Counter(kind(sample) for sample in samples(TrainTransform(UNSCALED, **PLAIN, three_augment=True)))
    assert set(counts) == {"gray", "solarize", "blur"}
    assert min(counts.values()) > 75, "of 300; the expectation is 100 ± 8"


def test_the_blur_has_radii_from_a_tenth_to_two() -> None:
    """A larger radius gives noise a lower contrast."""
    blurred = [s for s in samples(TrainTransform(UNSCALED, **PLAIN, three_augment=True)) if kind(s) == "blur"]
    contrasts = sorted(sample.std().item() for sample in blurred)
    sharpest, softest = (pixels(picture().filter(ImageFilter.GaussianBlur(r))).std().item() for r in (0.1, 2.0))
    assert softest <= contrasts[0] < softest * 1.05
    assert sharpest * 0.95 < contrasts[-1] <= sharpest


def test_without_three_augment_the_pixels_are_the_images_own() -> None:
    for sample in samples(TrainTransform(UNSCALED, **PLAIN), count=8):
        assert torch.equal(sample, pixels(picture()))


def test_three_augment_comes_after_the_flip_and_before_color_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Color jitter changes the brightness of the result of 3-Augment: a gray image stays gray, at another level."""
    jittered = samples(TrainTransform(UNSCALED, **PLAIN | {"color_jitter": 0.4}, three_augment=True), count=60)
    plain = samples(TrainTransform(UNSCALED, **PLAIN, three_augment=True), count=60)
    grays = [(a, b) for a, b in zip(jittered, plain, strict=True) if kind(b) == "gray"]
    assert grays
    for with_jitter, without in grays:
        assert torch.equal(with_jitter[0], with_jitter[1])
        assert not torch.allclose(with_jitter, without, atol=0.02)
    assert not any(torch.equal(a, b) for a, b in zip(jittered, plain, strict=True))

    seen = []
    monkeypatch.setattr("data.transforms.gray_solarize_or_blur", lambda image: seen.append(image) or image)
    samples(TrainTransform(UNSCALED, **PLAIN | {"hflip": 1.0, "color_jitter": 0.4}, three_augment=True), count=1)
    assert torch.equal(pixels(seen[0]), pixels(picture()).flip(-1))


@pytest.mark.parametrize("three_augment", [False, True])
def test_the_same_seed_gives_the_same_pixels(three_augment: bool) -> None:
    deit = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "hflip": 0.5, "color_jitter": 0.3, "erase_prob": 0.25}
    transform = TrainTransform(UNSCALED, **PLAIN | deit, three_augment=three_augment)
    once, again = samples(transform, count=30), samples(transform, count=30)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert all(not torch.equal(a, b) for a, b in pairwise(once))


def test_three_augment_draws_from_pythons_generator_alone() -> None:
    def states() -> tuple:
        return torch.random.get_rng_state().tolist(), np.random.get_state()[1].tolist()  # type: ignore[index]

    before = states()
    made = []
    for _ in range(2):
        random.seed(5)
        made.append([gray_solarize_or_blur(picture()).tobytes() for _ in range(10)])
    assert made[0] == made[1]
    assert states() == before


def test_three_augment_and_rand_augment_contradict_each_other() -> None:
    with pytest.raises(InputError, match=r"^augment\.three_augment=true: cannot be combined with augment\.rand_a"):
        TrainTransform(UNSCALED, **PLAIN | {"rand_augment": "rand-m9-inc1"}, three_augment=True)


def test_normalization_is_the_models_own() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
    expected = (pixels(picture()) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    own = {"mean": mean, "std": std}
    torch.testing.assert_close(
        whole(view_of(TrainTransform(Preprocessing(size=(SIZE, SIZE), **own), **PLAIN)), picture()), expected
    )
    evaluated = Preprocessing(size=(SIZE, SIZE), **own)
    torch.testing.assert_close(whole(CenterLabelledCrop(evaluated, 1), picture()), expected)
    assert not torch.allclose(whole(CenterLabelledCrop(Preprocessing(size=(SIZE, SIZE)), 1), picture()), expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_interpolation_is_the_models_own(interpolation: str) -> None:
    image = Digits().train()[0].image
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    expected = pixels(image.resize((48, 48), method))
    preprocessing = replace(UNSCALED, size=(48, 48), interpolation=interpolation)
    trained = whole(view_of(TrainTransform(preprocessing, **PLAIN)), image)
    torch.testing.assert_close(trained, expected, atol=1.01 / 255, rtol=0)  # torch's resize rounds at another step
    evaluated = whole(CenterLabelledCrop(preprocessing, 1), image)
    torch.testing.assert_close(evaluated, expected)


def test_the_share_of_erased_images_is_as_asked_for() -> None:
    for probability in (0.0, 0.25, 1.0):
        erased = erase(range(1000), probability).flatten(1).any(1)
        assert erased.float().mean().item() == pytest.approx(probability, abs=0.05 if probability == 0.25 else 0.001)


def test_what_is_erased_follows_from_the_seed_alone() -> None:
    seeds = list(range(40))
    together, backwards = erase(seeds, 0.5), erase(seeds[::-1], 0.5)
    assert torch.equal(together, backwards.flip(0))
    torch.manual_seed(7)
    random.seed(7)
    assert torch.equal(together, torch.cat([erase([seed], 0.5) for seed in seeds]))
    boxes = {tuple(image.any(0).nonzero().flatten().tolist()) for image in together}
    assert len(boxes) > 10


def erase(seeds: Sequence[int], probability: float) -> Tensor:
    """Erase black images. Only erased pixels of the result differ from 0."""
    transform = TrainTransform(replace(UNSCALED, size=(16, 16)), **PLAIN | {"erase_prob": probability})  # type: ignore[arg-type]
    return transform.on_device(torch.zeros(len(seeds), 16, 16, 3, dtype=torch.uint8), seeds)
