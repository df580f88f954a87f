"""The segmentation view: image and mask move alike, crops show several classes, and all follows from the seed."""

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs

from data.datasets.ade20k import ADE20k
from data.examples import Example
from data.index_mask import IGNORED, IndexMask, Labels
from data.loader import EvalLoader, TrainLoader
from data.samplers import TrainBatches
from data.views import VIEWS
from data.views import segmentation as segmentation_module
from data.views.segmentation import MaskBatch, PhotometricDistortion, RandomMaskedCrop, WholeMasks
from xcit.encoded_image import EncodedImage
from xcit.errors import InputError
from xcit.preprocessing import Preprocessing

from .small_ade import write_small_ade

OPTIONS: dict[str, Any] = {
    "ratio": [0.5, 2.0],
    "cat_max_ratio": 0.75,
    "crop_attempts": 10,
    "hflip": 0.5,
    "photometric": 0.5,
    "brightness": 0.125,
    "contrast": [0.5, 1.5],
    "saturation": [0.5, 1.5],
    "hue": 0.1,
}
SIZE = 64


def preprocessing(**changes: Any) -> Preprocessing:
    return Preprocessing(**({"size": (SIZE, 4 * SIZE), "resize": "shortest", "interpolation": "bilinear"} | changes))


def view(**options: Any) -> RandomMaskedCrop:
    return VIEWS["segmentation"].training(preprocessing(), [], "cpu", **(OPTIONS | options))


def example(pixels: np.ndarray, mask: np.ndarray, num_classes: int) -> Example:
    def png(array: np.ndarray, name: str) -> EncodedImage:
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        return EncodedImage(file.getvalue(), name)

    image = png(pixels, "a.png")
    labels = Labels({value: value for value in range(num_classes)}, [65535])
    return Example(image, IndexMask(png(mask, "mask.png"), labels, image), "a.png")


def sample(made: Any, of: Example, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    image, mask = made.sample(of)
    return image.numpy(), mask.numpy()


HEIGHT, WIDTH = 120, 180


def coordinates() -> Example:
    """An image whose red and green are the row and the column, and a mask whose label is the number of the pixel."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8)
    return example(pixels, (rows * WIDTH + columns).astype(np.uint16), HEIGHT * WIDTH)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_image_and_mask_move_alike(interpolation: str) -> None:
    made = VIEWS["segmentation"].training(
        preprocessing(interpolation=interpolation), [], "cpu", **(OPTIONS | {"photometric": 0.0, "crop_attempts": 1})
    )
    shifts, flipped = [], []
    for seed in range(60):
        image, mask = sample(made, coordinates(), seed)
        inside = mask != IGNORED
        shown = np.stack([mask[inside] // WIDTH, mask[inside] % WIDTH], axis=1)
        # Half of a source pixel, and half of a gray level, because the values are rounded. The image's border is
        # flatter, since the filter ends there.
        border = (shown < 6).any(1) | (shown >= np.array([HEIGHT, WIDTH]) - 6).any(1)
        difference = image[inside][:, :2].astype(float) - shown
        assert np.abs(difference[~border]).max() <= 1.01
        shifts.append(difference[~border].mean(0))
        flipped.append(bool(mask[0, 0] > mask[0, 1]))
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.06, "their pixel centers are the same"
    assert 15 < sum(flipped) < 45


def test_only_the_crop_is_computed_and_it_is_that_of_the_resized_image(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[range] = []
    draw = segmentation_module.random_range
    lengths: list[int] = []

    def recorded(length: int, size: int) -> range:
        lengths.append(length)
        drawn.append(draw(length, size))
        return drawn[-1]

    monkeypatch.setattr(segmentation_module, "random_range", recorded)
    pixels = photographs.coffee()[:300, :450]
    mask = np.zeros((300, 450), dtype=np.uint16)
    made = view(photometric=0.0, hflip=0.0, crop_attempts=1)
    for seed in range(20):
        image, _ = sample(made, example(pixels, mask, 1), seed)
        (rows, columns), (height, width) = drawn[-2:], lengths[-2:]
        whole = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
        expected = whole[rows.start : rows.stop, columns.start : columns.stop].astype(int)
        assert np.abs(image[: len(rows), : len(columns)].astype(int) - expected).max() <= 1
    # The shorter side is 64 in evaluation, and a ratio of 0.5 to 2 in training.
    assert min(lengths[::2]) >= 32 and max(lengths[::2]) <= 128 and len(set(lengths[::2])) > 10


def lopsided() -> Example:
    """Class 1 is in a corner, class 0 everywhere else; a part is ignored."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint16)
    mask[:50, :50] = 1
    mask[100:, 100:] = 65535
    return example(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8), mask, 2)


def shares(mask: np.ndarray) -> np.ndarray:
    counts = np.bincount(mask[mask != IGNORED], minlength=2)
    return counts / max(1, counts.sum())


def test_no_class_takes_more_of_a_crop_than_the_cap() -> None:
    options = {"ratio": [1.5, 2.0]}
    of_one_attempt = [shares(sample(view(**options, crop_attempts=1), lopsided(), seed)[1]) for seed in range(30)]
    of_many = [shares(sample(view(**options, crop_attempts=2000), lopsided(), seed)[1]) for seed in range(30)]
    assert max(share.max() for share in of_one_attempt) > 0.75, "the cap has something to do"
    assert max(share.max() for share in of_many) < 0.75
    # If no crop has two classes, the last one is taken.
    plain = example(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8), np.zeros((HEIGHT, WIDTH), dtype=np.uint16), 1)
    assert (sample(view(), plain, 0)[1] != IGNORED).any()


def test_smaller_images_are_padded_with_the_mean_color_and_ignored() -> None:
    made = view(ratio=[0.5, 0.5])
    pixels = np.full((HEIGHT, WIDTH, 3), 255, dtype=np.uint8)
    found = [made.sample(example(pixels, np.zeros((HEIGHT, WIDTH), dtype=np.uint16), 1)) for _ in range(3)]
    batch = made.to_device(made.collate(found), torch.device("cpu"), [0] * 3, [0])
    assert isinstance(batch, MaskBatch)
    assert batch.images.shape == (3, 3, SIZE, SIZE) and batch.images.dtype == torch.float32
    assert batch.masks.shape == (3, SIZE, SIZE) and batch.masks.dtype == torch.int64
    assert (batch.masks[:, :32, :48] == 0).all()
    assert (batch.masks[:, 32:] == IGNORED).all() and (batch.masks[:, :, 48:] == IGNORED).all()
    assert batch.images[:, :, 32:].abs().max() < 0.01 and batch.images[:, :, :, 48:].abs().max() < 0.01
    assert batch.images[:, :, :32, :48].abs().min() > 0.1


def test_a_sample_depends_on_its_seed_alone() -> None:
    made, other = view(), view()
    first = [sample(made, coordinates(), seed) for seed in range(5)]
    again = [sample(other, coordinates(), seed) for seed in (4, 3, 2, 1, 0)][::-1]
    for (image, mask), (image_again, mask_again) in zip(first, again, strict=True):
        assert np.array_equal(image, image_again) and np.array_equal(mask, mask_again)
    assert len({image.tobytes() for image, _ in first}) == 5


def test_colors_change_within_their_ranges() -> None:
    pixels = photographs.astronaut()[::8, ::8].copy()
    image = Image.fromarray(pixels)
    off = {"probability": 1.0, "brightness": 0.0, "contrast": [1, 1], "saturation": [1, 1], "hue": 0.0}

    def changed(seed: int = 0, **options: Any) -> np.ndarray:
        random.seed(seed)
        return np.asarray(PhotometricDistortion(**(off | options))(image)).astype(int)

    assert np.array_equal(changed(), pixels)
    assert np.array_equal(changed(probability=0.0, brightness=1.0, contrast=[0, 2], hue=0.5), pixels)
    for seed in range(20):
        lighter = changed(seed, brightness=0.125) - pixels
        middle = lighter[(pixels > 40) & (pixels < 215)]
        assert len(set(middle)) == 1 and abs(middle[0]) <= 32
        assert np.array_equal(changed(seed, contrast=[0.5, 0.5]), np.round(pixels * 0.5))
        assert np.array_equal(changed(seed, contrast=[1.5, 1.5]), np.round(pixels * 1.5).clip(0, 255))
        gray = changed(seed, saturation=[0, 0])
        assert np.abs(gray - pixels.max(2, keepdims=True)).max() <= 1
        hue = changed(seed, hue=0.1)
        assert np.abs(hue.max(2) - pixels.max(2)).max() <= 1 and np.abs(hue.min(2) - pixels.min(2)).max() <= 3
    assert len({changed(seed, hue=0.1).tobytes() for seed in range(20)}) > 15


def test_colors_leave_the_mask_alone() -> None:
    for seed in range(5):
        _, mask = sample(view(photometric=1.0), coordinates(), seed)
        _, plain = sample(view(photometric=0.0), coordinates(), seed)
        assert np.array_equal(mask, plain)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_with_any_number_of_workers(tmp_path: Path, workers: int, no_worker_stays: None) -> None:
    examples = ADE20k(root=str(write_small_ade(tmp_path, 6))).train()
    batches = TrainBatches(len(examples), 2, seed=3)
    loader = TrainLoader(examples, [view()], batches, epochs=1, workers=workers, device=torch.device("cpu"))
    seen = [(batch.images.clone(), batch.masks.clone()) for batch in loader.epoch(0)]
    assert len(seen) == 3
    labels = torch.cat([masks for _, masks in seen]).unique().tolist()
    assert labels == [IGNORED, 0, 1, 2, 3]
    expected = view()
    order = [item for batch in batches for item in batch]
    for number, (index, seed) in enumerate(order):
        image, mask = sample(expected, examples[index], seed)
        assert np.array_equal(seen[number // 2][1][number % 2], mask)
        assert torch.equal(seen[number // 2][0][number % 2], preprocessing().normalize(torch.tensor(image)[None])[0])


def test_evaluation_sees_whole_images_and_masks_of_the_original_size(tmp_path: Path) -> None:
    examples = ADE20k(root=str(write_small_ade(tmp_path, 2, (96, 128), validation=3))).val()
    made = VIEWS["segmentation"].evaluation(preprocessing(), [])
    loader = EvalLoader(examples, made, 2, workers=0, device=torch.device("cpu"))
    batches = list(loader)
    assert [len(batch.images) for batch in batches] == [2, 1]
    for number, expected in enumerate(examples[index] for index in range(3)):
        batch: WholeMasks = batches[number // 2]
        picture, mask = batch.pictures[number % 2], batch.masks[number % 2]
        assert picture.shape == (64, 85, 3) and picture.dtype == torch.uint8
        assert torch.equal(picture, preprocessing().pixels(expected.image.rgb()))
        assert torch.equal(batch.images[number % 2], preprocessing()([expected.image.rgb()]))
        assert mask.shape == (96, 128) and mask.dtype == torch.int64
        assert np.array_equal(mask, expected.target.decode())


def test_what_the_view_cannot_make_is_refused() -> None:
    with pytest.raises(InputError, match=r"^data.decode=gpu: not for this task, whose images have masks; use cpu$"):
        VIEWS["segmentation"].training(preprocessing(), [], "gpu", **OPTIONS)
    gray = preprocessing(channels=1, mean=(0.5,), std=(0.5,))
    for build in (
        lambda: VIEWS["segmentation"].training(gray, [], "cpu", **OPTIONS),
        lambda: VIEWS["segmentation"].evaluation(gray, []),
    ):
        with pytest.raises(InputError, match=r"^images of 1 channels with 8 bits: must be RGB images"):
            build()
