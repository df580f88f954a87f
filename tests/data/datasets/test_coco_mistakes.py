"""A mistake in a file of COCO's format gets one line with the file and the id."""

import re
from pathlib import Path
from typing import Any

import pytest

from data.datasets.coco import COCO
from xcit.errors import InputError

from ..small_coco import Change, annotations_of, change


def first(**values: Any) -> Change:
    """Set these keys of the first annotation, whose id is 1; None removes a key."""

    def by(content: dict[str, Any]) -> None:
        for key, value in values.items():
            content["annotations"][0][key] = value
            if value is None:
                del content["annotations"][0][key]

    return by


def image(**values: Any) -> Change:
    return lambda content: content["images"][0].update(values)


HUGE = 10**400


RUNS = r"the runs of its mask must add up to the 72 × 96 pixels of the image$"


WRONG: dict[str, tuple[Change, str]] = {
    "no mask": (first(segmentation=None), r"annotation 1: has no segmentation; every object needs a mask"),
    "boxes alone": (first(segmentation=[]), r"annotation 1: has no segmentation; every object needs a mask"),
    "odd": (
        first(segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
        r"annotation 1: segmentation must be a list of polygons, each",
    ),
    "odd and short": (first(segmentation=[[1, 2, 3]]), r"annotation 1: segmentation must be a list of polygons, each"),
    "logical": (first(segmentation=[[True] * 6]), r"annotation 1: segmentation must be a list of polygons"),
    "flat": (first(segmentation=[1, 2, 3, 4, 5, 6]), r"annotation 1: segmentation must be a list of polygons"),
    "text": (first(segmentation=[["a"] * 6]), r"annotation 1: segmentation must be a list of polygons"),
    "far": (
        first(segmentation=[[0, 0, 1e300, 0, 9, 9]]),
        r"annotation 1: its polygons reach farther than 100,000 pixels$",
    ),
    "mask of another size": (
        first(segmentation={"size": [96, 72], "counts": [6912]}),
        r"annotation 1: the size of its mask is \[96, 72\]; must be \[72, 96\], the image's height and width$",
    ),
    "too short": (first(segmentation={"size": [72, 96], "counts": [10, 5]}), f"annotation 1: {RUNS}"),
    "too long": (first(segmentation={"size": [72, 96], "counts": [10, 9999]}), f"annotation 1: {RUNS}"),
    "negative run": (first(segmentation={"size": [72, 96], "counts": [-1, 6913]}), f"annotation 1: {RUNS}"),
    "short string": (first(segmentation={"size": [72, 96], "counts": "T3b1"}), f"annotation 1: {RUNS}"),
    "garbled": (first(segmentation={"size": [72, 96], "counts": "zz##"}), f"annotation 1: {RUNS}"),
    "not latin": (first(segmentation={"size": [72, 96], "counts": "ü\ud800"}), f"annotation 1: {RUNS}"),
    "no counts": (first(segmentation={"size": [72, 96]}), f"annotation 1: {RUNS}"),
    "no box": (first(bbox=None), r"annotation 1: bbox is None; must be \[left, top, width, height\] in pixels"),
    "negative box": (first(bbox=[5, 5, -2, 4]), r"annotation 1: bbox is \[5, 5, -2, 4\]; must be \[left, top, width"),
    "infinite box": (first(bbox=[5, 5, 1e999, 4]), r"(bbox is \[5, 5, inf|it holds Infinity)"),
    "area": (first(area="big"), r"annotation 1: area is 'big'; must be a number$"),
    "huge point": (
        first(segmentation=[[0, 0, HUGE, 0, 9, 9]]),
        r"annotation 1: its polygons reach farther than 100,000",
    ),
    "huge box": (first(bbox=[5, 5, HUGE, 4]), r"annotation 1: bbox is \[5, 5, 10+\.\.\.0+, 4\]; must be \[left, top"),
    "huge area": (first(area=HUGE), r"annotation 1: area is 10+\.\.\.0+; must be a number$"),
    "area beyond float32": (first(area=1e300), r"annotation 1: area is 1e\+300; must be a number$"),
    "huge image id": (image(id=HUGE), r"image 10+\.\.\.0+: id is 10+\.\.\.0+; must be an integer below 2\^63$"),
    "huge image": (
        image(width=HUGE),
        r"image 7: height and width are 72 and 10+\.\.\.0+; must be fewer than 2\^32 pixels$",
    ),
    "crowd as text": (first(iscrowd="0"), r"annotation 1: iscrowd is '0'; must be 0, 1, true or false$"),
    "crowd 2": (first(iscrowd=2), r"annotation 1: iscrowd is 2; must be 0, 1, true or false$"),
    "category": (first(category_id=3), r"annotation 1: category_id 3 is not among its categories$"),
    "no category": (first(category_id=None), r"annotation 1: category_id is None; must be an integer below 2\^63$"),
    "image": (first(image_id=1234), r"annotation 1: image_id 1234 is not among the images of this file$"),
    "twice": (image(id=17), r"image 17: is listed twice; each image id must be unique$"),
    "text id": (image(id="a"), r"image a: id is 'a'; must be an integer below 2\^63$"),
    "no size": (image(width=None), r"image 7: height and width are 72 and None; must be pixels$"),
    "no name": (image(file_name=""), r"image 7: file_name is ''; must be a text$"),
    "no annotations": (lambda c: c.update(annotations=[]), r"its list 'annotations' is empty$"),
    "no list": (lambda c: c.pop("categories"), r"has no list 'categories'; COCO's format: must be an object with"),
    "no dictionaries": (lambda c: c.update(images=[1]), r"its list 'images' must contain only JSON objects$"),
    "two names": (
        lambda c: [one.update(name=n) for one, n in zip(c["categories"], ["a", "a", "a (id 5)"], strict=True)],
        r"has 2 categories of name a \(id 5\); each name must be unique$",
    ),
    "two ids": (lambda c: c["categories"][1].update(id=2), r"has 2 categories of id 2; each id must be unique$"),
    "no class name": (lambda c: c["categories"][0].pop("name"), r"category 2: name is None; must be a text$"),
    "crowds": (lambda c: [a.update(iscrowd=1) for a in c["annotations"]], r"holds no object to learn from: each is"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_gets_one_line_with_the_file_and_the_id(coco: Path, case: str) -> None:
    by, line = WRONG[case]
    change(coco, by)
    with pytest.raises(InputError) as raised:
        COCO(root=str(coco)).train()
    assert str(raised.value).startswith(f"{annotations_of(coco)}: ") and "\n" not in str(raised.value)
    assert re.search(line, str(raised.value)), raised.value


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", r"is not JSON \(Expecting property name"),
        ("[" * 100_000, r"is not JSON \("),
        ('{"images": NaN}', r"is not JSON \(it holds NaN, which is no number in JSON\)$"),
        ("[]", r"has no list 'images'"),
    ],
)
def test_a_file_that_is_not_json_is_refused(coco: Path, content: str, line: str) -> None:
    annotations_of(coco).write_text(content)
    with pytest.raises(InputError, match=r"instances_train2017\.json: " + line):
        COCO(root=str(coco)).train()


def test_missing_files_and_folders_are_named(coco: Path) -> None:
    (coco / "train2017" / "000000000017.jpg").unlink()
    (coco / "train2017" / "000000000027.jpg").unlink()
    with pytest.raises(InputError) as raised:
        COCO(root=str(coco)).train()
    assert str(raised.value) == (
        f"{coco}/train2017/000000000017.jpg: no such image and 1 other; {annotations_of(coco)} lists it"
    )
    with pytest.raises(InputError, match=r"nowhere: no such folder \(data\.train_images\)$"):
        COCO(root=str(coco), train_images="nowhere").train()
    with pytest.raises(InputError, match=r"nothing\.json: cannot be read \(No such file or directory\)$"):
        COCO(root=str(coco), val_annotations="nothing.json").val()
    with pytest.raises(InputError, match=r"no such folder \(expected COCO's images and annotations in data\.root\)$"):
        COCO(root=str(coco / "nowhere"))
