"""A run on images with six channels of 16 bits that are not square: training, evaluation, and its own normalization."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.crops import random_resized_crop
from xcit.encoded_image import EncodedImage
from xcit.preprocessing import Preprocessing

from .conftest import call_here
from .test_pixel_arrays import bands, npy
from .test_preprocessing import noise, statistics

MEAN, STD = [0.5, 0.4, 0.3, 0.4, 0.5, 0.5], [0.25, 0.2, 0.2, 0.2, 0.2, 0.4]
PIXELS = ("data.channels=6", "data.bit_depth=16", f"data.mean={MEAN}", f"data.std={STD}")
SHAPE = ("data.image_size=[16,24]", "data.resize=letterbox")
TINY = (
    "model=xcit_n12_p8",
    "+model.depth=2",
    "pretrained=null",
    "train.epochs=1",
    "train.precision=fp32",
    "data.workers=0",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for number in range(16):
        path = folder / "images" / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bands(noise(20, 30, 6, bit_depth=16, seed=number)))
    root = f"data.root={folder / 'images'}"
    result = call_here(
        "train.py", "data=folder", root, *PIXELS, *SHAPE, *TINY, "resolutions=[16]", "run_dir=run", cwd=folder
    )
    assert result.status == 0, result.stderr
    assert (
        "images      16 × 24 pixels (height × width) by letterbox, 6 channels, values from 0 to 65535" in result.stderr
    )
    assert (
        "augment.rand_augment=" in result.stderr and "left out, since they need RGB images with 8 bits" in result.stderr
    )
    return folder


def test_the_checkpoint_holds_what_was_given_and_is_evaluated_with_it(run: Path) -> None:
    saved = torch.load(run / "run/checkpoints/last.pt", weights_only=True)["preprocessing"]
    given = {"size": [16, 24], "channels": 6, "bit_depth": 16, "resize": "letterbox", "mean": MEAN, "std": STD}
    assert {key: saved[key] for key in given} == given
    result = call_here("eval.py", "checkpoint=run", "run_dir=evaluated", cwd=run)
    assert result.status == 0, result.stderr
    rows = [json.loads((run / folder / "results.json").read_text()) for folder in ("run", "evaluated")]
    for trained, evaluated in zip(*rows, strict=True):
        assert (trained["resolution"], trained["top1"]) == (evaluated["resolution"], evaluated["top1"])
        assert trained["loss"] == pytest.approx(evaluated["loss"], rel=1e-5)


@pytest.mark.parametrize(
    "typed", ["data.mean=[0,0,0,0,0,0]", "data.bit_depth=8", "data.resize=crop", "data.channels=3"]
)
def test_another_normalization_is_refused(run: Path, typed: str) -> None:
    result = call_here("eval.py", "checkpoint=run", typed, "run_dir=other", cwd=run)
    assert result.status == 2 and "which is always used" in result.stderr and typed.split("=")[0] in result.stderr
    assert not (run / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("data.channels=6", "data.mean=[0.5]"), "data.mean=(0.5,): must hold 6 finite values, one for each channel"),
        (
            ("data.channels=6", "data.std=[1,1,1,1,1,0]"),
            "data.std=[1,1,1,1,1,0]: must be a list of one or more",
        ),
        (("data.value_range=[2,1]",), "data.value_range=(2.0, 1.0): must hold the lowest and the highest value"),
        (("data.image_size=[16,24,3]",), "data.image_size"),
        (("data.bit_depth=17",), "data.bit_depth=17: must be an integer from 1 to 16"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(run: Path, arguments: tuple[str, ...], line: str) -> None:
    root = f"data.root={run / 'images'}"
    result = call_here("train.py", "data=folder", root, *TINY, *arguments, "run_dir=refused", cwd=run)
    assert result.status == 2 and line in result.stderr, result.stderr
    assert not (run / "refused").exists()


# Training crops.


@pytest.mark.parametrize("write", [bands, npy])
@pytest.mark.parametrize("bit_depth", [8, 16])
def test_a_crop_of_the_whole_image_has_its_pixels(write: object, bit_depth: int) -> None:
    picture = noise(20, 30, 6, bit_depth=bit_depth)
    for rule in ("squash", "letterbox"):
        preprocessing = Preprocessing(size=(20, 30), bit_depth=bit_depth, resize=rule, **statistics(6))  # type: ignore[arg-type]
        made = random_resized_crop(EncodedImage(write(picture), "x"), preprocessing, (1, 1), (1, 1))  # type: ignore[operator]
        assert torch.equal(made.long(), torch.from_numpy(picture.astype(np.int64)))


def test_letterbox_keeps_the_aspect_ratio_of_a_crop_and_pads_with_the_mean() -> None:
    picture = np.full((20, 40, 6), 1000, np.uint16)
    preprocessing = Preprocessing(size=(24, 24), bit_depth=16, resize="letterbox", **statistics(6))
    made = random_resized_crop(EncodedImage(npy(picture), "x"), preprocessing, (1, 1), (1, 1))
    assert made.shape == (24, 24, 6)
    assert (made[6:18] == 1000).all()
    padding = (65535 * torch.tensor(preprocessing.mean)).round().int()
    assert (made[:6] == padding).all() and (made[18:] == padding).all()


def test_a_wide_result_is_cut_from_a_wide_part() -> None:
    """Columns have their number as value, so that the part of the image that was stretched can be read off."""
    columns = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, :, None], (100, 100, 4))
    preprocessing = Preprocessing(size=(8, 32), **statistics(4))
    for _ in range(20):
        made = random_resized_crop(
            EncodedImage(npy(columns.copy()), "x"), preprocessing, (0.1, 0.2), (0.99, 1.01)
        ).float()
        width = (int(made[0, -1, 0]) - int(made[0, 0, 0])) * 32 / 31
        assert 60 <= width <= 95  # sqrt(0.1 · 10,000 · 4) to sqrt(0.2 · 10,000 · 4)
