"""Preprocessing converts to JSON and back, and refuses values out of range in one line."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import xcit
from xcit.errors import InputError
from xcit.preprocessing import Preprocessing

GREY: dict[str, Any] = {"channels": 1, "mean": (0.3,), "std": (0.15,)}


def test_json_restores_an_equal_preprocessing() -> None:
    for preprocessing in (
        Preprocessing(),
        Preprocessing((96, 224), 4, 16, "letterbox", 0.875, "bilinear", (0.1, 0.2, 0.3, 1 / 3), (1.0, 0.2, 0.3, 0.4)),
    ):
        plain = json.loads(json.dumps(preprocessing.as_dict()))
        assert Preprocessing.from_dict(plain) == preprocessing
        assert plain == preprocessing.as_dict(), "lists, numbers and strings alone"


def test_missing_keys_get_their_defaults_and_unknown_ones_are_refused() -> None:
    assert Preprocessing.from_dict({"size": [96, 96]}) == Preprocessing(size=(96, 96))
    with pytest.raises(InputError, match=r"^preprocessing: unknown key gamma; known ones: bit_depth, channels, crop_"):
        Preprocessing.from_dict({"gamma": 2.2})


def test_at_changes_only_size_and_crop_ratio() -> None:
    own = Preprocessing((96, 96), 1, 12, "squash", 0.9, "bilinear", (0.1,), (0.2,))
    assert own.at(48) == Preprocessing((48, 48), 1, 12, "squash", 0.9, "bilinear", (0.1,), (0.2,))
    assert own.at((48, 64), 1.0) == Preprocessing((48, 64), 1, 12, "squash", 1.0, "bilinear", (0.1,), (0.2,))


def test_of_model_reads_the_preprocessing_of_a_model() -> None:
    model = xcit.create_model("timm", name="test_vit", num_classes=0)
    own = Preprocessing.of_model(model)
    assert (own.size, own.mean, own.std, own.crop_ratio) == ((160, 160), (0.5,) * 3, (0.5,) * 3, 0.95)
    assert Preprocessing.of_model(torch.nn.Identity()) == Preprocessing()


def test_statistics_are_averaged_if_the_model_has_other_channels() -> None:
    model = torch.nn.Identity()
    model.pretrained_cfg = {"input_size": (4, 32, 48), "mean": (0.2, 0.3, 0.4), "std": (0.1, 0.2, 0.3)}
    own = Preprocessing.of_model(model)
    assert (own.size, own.channels) == ((32, 48), 4)
    assert own.mean == pytest.approx((0.3,) * 4)
    assert own.std == pytest.approx((0.2,) * 4)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"size": (0, 224)}, "size=(0, 224): must be (height, width) in pixels, both at least 1"),
        ({"size": (224,)}, "size=(224,): must be (height, width) in pixels, both at least 1"),
        ({"crop_ratio": 0.0}, "crop_ratio=0.0: must be greater than 0 and at most 1"),
        ({"crop_ratio": 1.1}, "crop_ratio=1.1: must be greater than 0 and at most 1"),
        ({"crop_ratio": float("nan")}, "crop_ratio=nan: must be greater than 0 and at most 1"),
        ({"bit_depth": 0}, "bit_depth=0: must be 1 to 16"),
        ({"bit_depth": 32}, "bit_depth=32: must be 1 to 16"),
        ({"resize": "pad"}, "resize=pad: must be one of crop, letterbox, squash, shortest"),
        ({"interpolation": "lanczos"}, "interpolation=lanczos: must be one of bicubic, bilinear"),
        ({"channels": 1}, "mean=(0.485, 0.456, 0.406): must hold 1 finite values, one for each channel"),
        ({"std": (0.5, 0.5)}, "std=(0.5, 0.5): must hold 3 finite values, one for each channel"),
        ({"std": (0.5, 0.0, 0.5)}, "std=(0.5, 0.0, 0.5): must be greater than 0"),
        ({"std": (0.5, float("nan"), 0.5)}, "std=(0.5, nan, 0.5): must hold 3 finite values, one for each channel"),
        ({"size": 224}, "size=224: must be (height, width) in pixels, both at least 1"),
        ({"size": (1.5, 2)}, "size=(1.5, 2): must be (height, width) in pixels, both at least 1"),
        ({"channels": 0, "mean": (), "std": ()}, "channels=0: must be at least 1"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_accepted_ones(values: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as caught:
        Preprocessing(**values)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("values", "picture", "line"),
    [
        ({}, np.zeros((8, 8), np.uint8), "image of shape (8, 8, 1): must be (H, W, 3)"),
        ({}, np.zeros((3, 8, 8), np.uint8), "image of shape (3, 8, 8): must be (H, W, 3)"),
        (
            {},
            np.zeros((8, 8, 3), np.float32),
            "image of float32: must hold integers from 0 to 255; only a run with data.value_range takes floats",
        ),
        (
            {},
            np.zeros((8, 8, 3), bool),
            "image of bool: must hold integers from 0 to 255; only a run with data.value_range takes floats",
        ),
        (
            {},
            np.full((8, 8, 3), 300, np.uint16),
            "image with values from 300 to 300: must be 0 to 255 with bit_depth=8",
        ),
        (
            {"bit_depth": 12},
            np.full((8, 8, 3), 4096, np.uint16),
            "image with values from 4096 to 4096: must be 0 to 4095 with bit_depth=12",
        ),
        ({}, torch.full((8, 8, 3), -1), "image with values from -1 to -1: must be 0 to 255 with bit_depth=8"),
        (
            {"bit_depth": 16, **GREY},
            Image.new("F", (8, 8)),
            "image of float32: must hold integers from 0 to 65535; only a run with data.value_range takes floats",
        ),
    ],
)
def test_a_picture_of_the_wrong_shape_or_type_is_refused(values: dict[str, Any], picture: Any, line: str) -> None:
    with pytest.raises(InputError) as caught:
        Preprocessing(**values)([picture])
    assert str(caught.value) == line


def test_a_photograph_that_exif_rotates_is_upright() -> None:
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8))
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    stored.getexif()[0x0112] = 6  # rotate by 270 degrees counterclockwise for display
    preprocessing = Preprocessing(size=(6, 4), resize="squash")
    assert torch.equal(preprocessing.pixels(stored), preprocessing.pixels(upright))


def test_an_8_bit_picture_is_not_taken_for_16_bits() -> None:
    preprocessing = Preprocessing(size=(4, 4), channels=1, bit_depth=16, mean=(0.5,), std=(0.25,))
    with pytest.raises(InputError, match="image of mode L: holds 8 bits, not the 16 of bit_depth"):
        preprocessing.pixels(Image.new("L", (4, 4)))
