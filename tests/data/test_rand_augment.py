"""Fast shears and translations agree with timm's, which Pillow computes."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment

from data.rand_augment import FAST_OPERATIONS
from data.transforms import TrainTransform
from xcit.preprocessing import Preprocessing

from .test_crops import photograph

FILL = (124, 116, 104)
BICUBIC = Image.Resampling.BICUBIC
FACTORS = (0.0, 0.3, -0.3, 0.0137, -0.45, 1 / 7, -2 / 3, 0.999, 1.5, -40.0)
POLICY = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "hflip": 0.5, "color_jitter": 0.0, "erase_prob": 0.0}


def differences(one: Image.Image, other: Image.Image) -> np.ndarray:
    return np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int))


@pytest.mark.parametrize("size", [(224, 224), (37, 61), (5, 90), (1, 1)])
@pytest.mark.parametrize("name", FAST_OPERATIONS)
def test_they_agree_with_timms(name: str, size: tuple[int, int]) -> None:
    image = photograph(*size)
    for factor in FACTORS:
        theirs = auto_augment.NAME_TO_OP[name](image, factor, fillcolor=FILL, resample=BICUBIC)
        found = differences(FAST_OPERATIONS[name](image, factor, fillcolor=FILL, resample=BICUBIC), theirs)
        assert found.max() <= 1, factor
        assert (found > 0).mean() < 0.01, factor


def test_one_color_stays_as_it_is() -> None:
    """The sum of the weights is 1 only up to rounding, which must not turn 100 into 99."""
    image = Image.new("RGB", (64, 64), (100, 1, 255))
    for name in FAST_OPERATIONS:
        slid = FAST_OPERATIONS[name](image, 0.0613, fillcolor=(100, 1, 255), resample=BICUBIC)
        assert differences(slid, image).max() == 0


@pytest.mark.parametrize(("interpolation", "fast"), [("bicubic", 4), ("bilinear", 0)])
def test_randaugment_slides_where_it_is_bicubic(interpolation: str, fast: int) -> None:
    transform = TrainTransform(
        Preprocessing(size=(32, 32), interpolation=interpolation), rand_augment="rand-m9-mstd0.5-inc1", **POLICY
    )
    (policy,) = transform.color_transforms
    assert sum(op.aug_fn in FAST_OPERATIONS.values() for op in policy.ops) == fast
    assert len(policy.ops) == 15


def test_randaugment_is_timms_but_for_rounding() -> None:
    transform = TrainTransform(Preprocessing(size=(48, 48)), rand_augment="rand-m9-mstd0.5-inc1-n1", **POLICY)
    plain = TrainTransform(Preprocessing(size=(48, 48)), rand_augment="rand-m9-mstd0.5-inc1-n1", **POLICY)
    for op in plain.color_transforms[0].ops:
        op.aug_fn = auto_augment.NAME_TO_OP[op.name]
    image = photograph(80, 60)
    slid = 0
    for seed in range(200):
        both = []
        for each in (transform, plain):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            both.append(each(image).int())
        found = (both[0] - both[1]).abs()
        assert found.max() <= 1
        slid += int(found.max() > 0)
    assert slid > 10  # the fast operations were used
