"""Drawings: boxes, names and masks are where they belong, at any size, and masks are taken one at a time."""

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xcit.evaluation.drawing import (
    color_of,
    draw_objects,
    draw_segments,
    font_for,
    line_width,
    side_by_side,
    text_size,
)
from xcit.prediction.pictures import ContactSheet

CLASSES = ["wall", "person", "dog"]
GRAY = 100


def gray(height: int, width: int) -> Image.Image:
    return Image.new("RGB", (width, height), (GRAY,) * 3)


def mixed(label: int) -> np.ndarray:
    return np.round((np.array(color_of(label)) + GRAY) / 2)


def test_each_class_has_a_color_of_its_own() -> None:
    colors = np.array([color_of(label) for label in range(150)])
    assert len({tuple(color) for color in colors}) == 150
    few = colors[:20].astype(int)
    distances = np.abs(few[:, None] - few[None]).sum(2) + 999 * np.eye(20, dtype=int)
    assert distances.min() > 40


@pytest.mark.parametrize("side", [200, 4000])
def test_boxes_and_masks_are_where_they_belong(side: int) -> None:
    picture = gray(side, side)
    unit = side // 20
    mask = np.zeros((side, side), dtype=bool)
    mask[8 * unit : 10 * unit, 8 * unit : 10 * unit] = True
    box = [6 * unit, 6 * unit, 12 * unit, 12 * unit]
    pixels = np.asarray(draw_objects(picture, [box], [1], [0.9], [mask], CLASSES))
    assert pixels.shape == (side, side, 3)
    assert np.abs(pixels[9 * unit, 9 * unit] - mixed(1)).max() <= 1, "half transparent"
    width = line_width(picture)
    for row, column in ((9 * unit, box[0]), (9 * unit, box[2] - 1), (box[3] - 1, 9 * unit)):
        assert tuple(pixels[row, column]) == color_of(1)
    assert tuple(pixels[9 * unit, box[0] + width]) == (GRAY,) * 3, "lines are as thick as line_width says"
    # Outside of the box there is only the name, above its left corner.
    height = text_size(font_for(picture), "person 0.90")[1]
    changed = (pixels != GRAY).any(2)
    changed[box[1] : box[3], box[0] : box[2]] = False
    rows, columns = np.nonzero(changed)
    assert rows.min() == box[1] - height and rows.max() < box[1] and columns.min() == box[0]
    assert np.asarray(picture).min() == np.asarray(picture).max() == GRAY, "the picture itself is unchanged"


def test_names_stay_within_the_image() -> None:
    pixels = np.asarray(draw_objects(gray(100, 200), [[190, -5, 300, 120]], [2], None, None, CLASSES))
    width, height = text_size(font_for(gray(100, 200)), "dog")
    name = pixels[:height, 200 - width :].reshape(-1, 3)
    assert (name == color_of(2)).all(1).mean() > 0.5
    assert (pixels[height + 5, :150] == GRAY).all()


MISSING = "\ue000"
"""A character that no font has. It is drawn as a box."""


@pytest.mark.parametrize("letter", ["ä", "ß", "é", "Ж", "ω"])
def test_letters_beyond_ascii_are_no_boxes(letter: str) -> None:
    def drawn(text: str) -> list[bytes]:
        sheet = ContactSheet(2)
        sheet.add(gray(90, 90), [text], "a.png")
        named = ContactSheet(2)
        named.add(gray(90, 90), [], text)
        pictures = (
            sheet.draw(),
            named.draw(),
            draw_objects(gray(100, 200), [[20, 40, 80, 80]], [0], None, None, [text]),
            draw_segments(gray(20, 30), np.zeros((20, 30)), [text]),
            side_by_side([(text, gray(20, 30))]),
        )
        return [picture.tobytes() for picture in pictures]

    assert all(one != box for one, box in zip(drawn(letter), drawn(MISSING), strict=True))


def test_a_crowd_is_named_as_one() -> None:
    def drawn(classes: list[str], *crowd: Any) -> bytes:
        return draw_objects(gray(100, 200), [[20, 40, 80, 80]], [1], None, None, classes, *crowd).tobytes()

    assert drawn(["cat", "dog"], [True]) == drawn(["cat", "dog (crowd)"])
    assert drawn(["cat", "dog"], [False]) == drawn(["cat", "dog"])


def test_the_best_object_is_drawn_over_the_others() -> None:
    box = [20, 40, 80, 80]
    pixels = np.asarray(draw_objects(gray(100, 100), [box, box], [1, 2], [0.9, 0.3], None, CLASSES))
    assert tuple(pixels[60, 20]) == color_of(1)


def test_no_objects_leave_the_picture_as_it_is() -> None:
    pixels = np.asarray(draw_objects(gray(50, 60), np.zeros((0, 4)), [], [], [], CLASSES))
    assert (pixels == GRAY).all()


def test_masks_are_used_one_at_a_time() -> None:
    alive: list[weakref.ref] = []

    def masks() -> Iterator[np.ndarray]:
        for _ in range(10):
            mask = np.ones((50, 60), dtype=bool)
            alive.append(weakref.ref(mask))
            yield mask
            del mask
            assert sum(reference() is not None for reference in alive) <= 1

    draw_objects(gray(50, 60), [[0, 0, 9, 9]] * 10, [1] * 10, None, masks(), CLASSES)
    assert len(alive) == 10


def test_segments_have_the_colors_of_their_classes_and_a_legend() -> None:
    mask = np.full((100, 200), -1)
    mask[:50, :100] = 2
    mask[50:, 150:] = 0
    drawn = draw_segments(gray(100, 200), mask, CLASSES)
    pixels = np.asarray(drawn)
    assert np.abs(pixels[25, 50] - mixed(2)).max() <= 1 and np.abs(pixels[75, 175] - mixed(0)).max() <= 1
    assert (pixels[75, 50] == GRAY).all(), "what is ignored stays as it is"
    width, height = text_size(font_for(gray(100, 200)), "dog")
    assert drawn.size == (200, 100 + height)
    # The larger one comes first.
    assert tuple(pixels[100, 0]) == color_of(2) and tuple(pixels[100, width]) == color_of(0)
    assert (pixels[100, -1] == 255).all()


def test_the_legend_takes_as_many_lines_as_it_needs() -> None:
    names = [f"a class with a long name {number}" for number in range(30)]
    mask = np.arange(30).repeat(20).reshape(30, 20)
    drawn = draw_segments(gray(30, 20).resize((200, 300)), mask, names)
    height = text_size(font_for(gray(300, 200)), "")[1]
    assert drawn.size == (200, 300 + 30 * height)
    pixels = np.asarray(drawn)
    assert all(tuple(pixels[300 + number * height, 0]) == color_of(number) for number in range(30))
    # The mask is resized to the picture.
    assert np.abs(pixels[295, 100] - mixed(29)).max() <= 1


def test_a_picture_without_classes_has_no_legend() -> None:
    assert draw_segments(gray(30, 20), np.full((30, 20), -1), CLASSES).size == (20, 30)
