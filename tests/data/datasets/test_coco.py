"""COCO's format is read as it is defined, and its masks equal pycocotools'."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as oracle
from pycocotools.coco import COCO as Oracle  # noqa: N811  two classes of one name

from data.datasets import DATASETS
from data.datasets.coco import COCO, CocoImages
from data.objects import decode_masks
from data.start_up import data_facts
from xcit.encoded_image import BrokenImageError
from xcit.errors import InputError

from ..small_coco import annotations_of, change


def by_image_id(examples: CocoImages) -> dict[int, Any]:
    return {example.target.image_id: example for example in (examples[i] for i in range(len(examples)))}


def test_objects_are_those_that_pycocotools_reads(coco: Path) -> None:
    """Boxes, classes, areas and masks: polygons, and run-length encodings that are compressed or not."""
    change(coco, lambda c: c.update(annotations=c["annotations"][::2] + c["annotations"][1::2]), "val")
    read, expected = DATASETS["coco"](root=str(coco)).val(), Oracle(str(annotations_of(coco, "val")))
    assert read.target_kind == "boxes"
    assert read.classes == ["circle", "rectangle", "triangle"]
    assert [example["file_name"] for example in expected.imgs.values()] == [Path(path).name for path in read.paths]
    forms = set()
    for image_id, example in by_image_id(read).items():
        annotations = expected.loadAnns(expected.getAnnIds(image_id))
        objects = example.target
        assert len(annotations) == len(objects.masks) == len(objects.boxes)
        assert objects.boxes.dtype == objects.areas.dtype == np.float32 and objects.labels.dtype == np.int64
        size = (expected.imgs[image_id]["height"], expected.imgs[image_id]["width"])
        masks = decode_masks(objects.masks, *size)
        assert masks.dtype == np.uint8 and objects.size == size
        for row, annotation in enumerate(annotations):
            left, top, width, height = annotation["bbox"]
            assert objects.boxes[row].tolist() == [left, top, left + width, top + height]
            assert objects.labels[row] == [2, 5, 9].index(annotation["category_id"])
            assert objects.crowd[row] == bool(annotation["iscrowd"])
            assert objects.areas[row] == annotation["area"]
            assert np.array_equal(masks[row], expected.annToMask(annotation))
            assert np.array_equal(masks[row], oracle.decode(objects.masks[row]))
            segmentation = annotation["segmentation"]
            forms.add(type(segmentation) if isinstance(segmentation, list) else type(segmentation["counts"]))
    assert forms == {list, str} and any(example.target.crowd.any() for example in by_image_id(read).values())


def test_training_leaves_out_images_without_objects_and_says_so(pristine: Path) -> None:
    dropped, kept = COCO(root=str(pristine)).train(), COCO(root=str(pristine), empty="keep").train()
    assert (len(dropped), len(kept)) == (4, 5)
    assert set(by_image_id(kept)) - set(by_image_id(dropped)) == {47}
    empty = by_image_id(kept)[47].target
    assert empty.boxes.shape == (0, 4) and empty.masks == [] and empty.size is None
    assert decode_masks(empty.masks, 7, 5).shape == (0, 7, 5)
    source = f"{pristine}/train2017 (instances_train2017.json: {len(dropped.annotations.labels)} objects)"
    assert data_facts({"training": dropped}) == [
        ("data", f"4 training images in 3 classes from {source}"),
        ("mended", "training images: 1 image without objects dropped"),
    ]


def test_an_image_with_crowds_alone_has_nothing_to_learn(coco: Path) -> None:
    def only_crowds(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            annotation["iscrowd"] = int(annotation["image_id"] == 17 or annotation["iscrowd"])

    change(coco, only_crowds)
    change(coco, only_crowds, "val")
    assert set(by_image_id(COCO(root=str(coco)).train())) == {7, 27, 37}
    assert set(by_image_id(COCO(root=str(coco)).val())) == {7, 17, 27, 37, 47}, "validation keeps all images"


def test_files_of_any_name_and_place_are_read(coco: Path, tmp_path: Path) -> None:
    shutil.move(annotations_of(coco), tmp_path / "mine.json")
    (coco / "pictures").mkdir()
    shutil.move(coco / "train2017", coco / "pictures" / "a")
    (coco / "a.json").write_text((coco / "annotations" / "instances_val2017.json").read_text())
    made = COCO(root=str(coco), train_annotations=str(tmp_path / "mine.json"), train_images="pictures/a")
    assert len(made.train()) == 4 and made.train()[0].key == str(coco / "pictures" / "a" / "000000000007.jpg")
    assert len(COCO(root=str(coco), val_annotations="a.json").val()) == 5


def test_file_names_may_have_folders_and_optional_fields_may_be_left_out(coco: Path) -> None:
    (coco / "train2017" / "below").mkdir()
    shutil.move(coco / "train2017" / "000000000007.jpg", coco / "train2017" / "below" / "a.jpg")

    def leave_out(content: dict[str, Any]) -> None:
        content["images"][0]["file_name"] = "below/a.jpg"
        for annotation in content["annotations"]:
            for key in ("area", "iscrowd", "id"):
                del annotation[key]

    before = COCO(root=str(coco)).val()
    change(coco, leave_out)
    train = COCO(root=str(coco)).train()
    assert train[0].key.endswith("train2017/below/a.jpg")
    for index in range(len(train)):
        objects = train[index].target
        height, width = objects.size
        assert objects.areas.tolist() == decode_masks(objects.masks, height, width).sum((1, 2)).tolist()
        assert not objects.crowd.any()
    assert len(before) == 5


def test_boxes_are_clipped_and_those_without_area_are_dropped_and_counted(coco: Path) -> None:
    def move(content: dict[str, Any]) -> None:
        of_first = [a for a in content["annotations"] if a["image_id"] == 7]
        copies = [dict(of_first[0], bbox=box) for box in ([-20, -5, 60, 30], [200, 10, 5, 5], [10, 10, 0, 20])]
        content["annotations"] += copies

    before = COCO(root=str(coco)).train()[0].target
    change(coco, move)
    train = COCO(root=str(coco)).train()
    assert train[0].target.boxes.tolist() == [*before.boxes.tolist(), [0, 0, 40, 25]]
    mended = ["1 image without objects dropped", "2 objects without area in the image dropped"]
    assert list(train.about.notes) == [*mended, "1 box clipped to the image"]
    assert [label for label, _ in data_facts({"training": train})] == ["data", "mended", "", ""]


def test_polygons_of_fewer_than_three_points_are_ignored_and_counted(coco: Path) -> None:
    """An object stays with its other polygons. One without them has an empty mask, and is not trained on."""
    good = [[5, 5, 40, 5, 40, 30], [50, 40, 70, 40, 70, 60, 50, 60]]

    def shorten(content: dict[str, Any]) -> None:
        of_first = next(a for a in content["annotations"] if a["image_id"] == 7)
        shapes = {901: [good[0], [1, 2, 3, 4], good[1]], 902: [[], [9, 9], [1, 2, 30, 40]]}
        added = [dict(of_first, id=i, segmentation=shape) for i, shape in shapes.items()]
        content["annotations"] = added + [a for a in content["annotations"] if a["image_id"] != 7]

    for split in ("train", "val"):
        change(coco, shorten, split)
    train, val = COCO(root=str(coco)).train(), COCO(root=str(coco)).val()
    expected = oracle.decode(oracle.merge(oracle.frPyObjects(good, 72, 96)))
    assert np.array_equal(decode_masks(train[0].target.masks, 72, 96), expected[None])
    masks = decode_masks(val[0].target.masks, 72, 96)
    assert np.array_equal(masks[0], expected) and not masks[1].any() and len(masks) == 2
    said = "4 polygons with fewer than 3 points ignored, the first in annotation 901"
    assert list(train.about.notes)[-2:] == [said, "1 object without area in the image dropped"]
    assert list(val.about.notes) == [said]


def test_validation_keeps_every_object_as_it_is(coco: Path) -> None:
    """COCO's metrics count boxes beyond the image and objects without area, too."""
    odd = [[-20.5, -5, 60, 30], [200, 10, 5, 5], [10, 10, 0, 20]]

    def move(content: dict[str, Any]) -> None:
        of_first = [a for a in content["annotations"] if a["image_id"] == 7]
        content["annotations"] += [dict(of_first[0], bbox=box) for box in odd]

    before = COCO(root=str(coco)).val()[0].target
    change(coco, move, "val")
    val = COCO(root=str(coco)).val()
    corners = [[left, top, left + width, top + height] for left, top, width, height in odd]
    assert val[0].target.boxes.tolist() == [*before.boxes.tolist(), *corners]

    change(coco, lambda content: content.update(annotations=[]), "val")
    assert len(COCO(root=str(coco)).val()[0].target.boxes) == 0, "images without objects can be evaluated"


def test_validation_counts_classes_as_training_does(coco: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        # Other ids, in another order, for the same names.
        content["categories"] = [{"id": i, "name": n} for i, n in ((1, "triangle"), (3, "circle"))]
        ids = {2: 3, 9: 1}
        content["annotations"] = [
            a | {"category_id": ids[a["category_id"]]} for a in content["annotations"] if a["category_id"] in ids
        ]

    classes = COCO(root=str(coco)).train().classes
    expected = by_image_id(COCO(root=str(coco)).val(classes))
    change(coco, rename, "val")
    val = COCO(root=str(coco)).val(classes)
    assert val.classes == classes and val.num_present == 2
    for image_id, example in by_image_id(val).items():
        labels = expected[image_id].target.labels
        assert example.target.labels.tolist() == labels[labels != 1].tolist()
    with pytest.raises(
        InputError,
        match=r"val2017\.json: category triangle is not a class of the training split \(1 such category\); "
        r"known classes: circle, kite$",
    ):
        COCO(root=str(coco)).val(["circle", "kite"])


def test_categories_of_the_same_name_are_told_apart(coco: Path) -> None:
    """In the validation file, too, which may hold only one of them: its id tells which."""

    def rename(content: dict[str, Any]) -> None:
        content["categories"][1]["name"] = "circle"  # id 5

    def without_first(content: dict[str, Any]) -> None:
        content["categories"] = content["categories"][1:]
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 2]

    before = COCO(root=str(coco)).train()
    for split in ("train", "val"):
        change(coco, rename, split)
    train = COCO(root=str(coco)).train()
    assert train.classes == ["circle (id 2)", "circle (id 5)", "triangle"]
    assert np.array_equal(train.annotations.labels, before.annotations.labels)
    assert "categories of the same name are told apart by their ids: circle (id 2), circle (id 5)" in train.about.notes
    whole = COCO(root=str(coco)).val(train.classes).annotations.labels
    change(coco, without_first, "val")
    val = COCO(root=str(coco)).val(train.classes)
    assert val.classes == train.classes and val.annotations.labels.tolist() == whole[whole != 0].tolist()
    assert not val.about.notes


def test_a_worker_gets_arrays_and_no_list_of_objects(pristine: Path) -> None:
    """What a worker started by spawn gets is small, and Python counts no references for each object."""
    train = COCO(root=str(pristine)).train()
    assert all(
        isinstance(v, np.ndarray | int | list | Path) or k == "file_names" for k, v in vars(train.annotations).items()
    )
    assert pickle.loads(pickle.dumps(train))[1].target.boxes.tolist() == train[1].target.boxes.tolist()


def test_an_image_that_vanishes_later_is_a_broken_image(coco: Path) -> None:
    train = COCO(root=str(coco)).train()
    (coco / "train2017" / "000000000017.jpg").unlink()
    with pytest.raises(BrokenImageError, match=r"000000000017\.jpg: cannot be read"):
        train[1]
