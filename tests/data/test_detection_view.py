"""The detection view: image, boxes and masks move together, batches have no more padding than they need."""

import dataclasses
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data.datasets.coco import COCO
from data.examples import Example
from data.loader import EvalLoader, TrainLoader
from data.objects import Objects, decode_masks, mask_coder
from data.samplers import TrainBatches
from data.views import VIEWS
from data.views.detection import MultiScaleObjects, ObjectBatch, Sample, WholeImages
from xcit.encoded_image import BrokenImageError, EncodedImage
from xcit.errors import InputError
from xcit.preprocessing import Preprocessing

from .small_coco import write_small_coco

OPTIONS: dict[str, Any] = {
    "hflip": 0.5,
    "shorter_sides": list(range(480, 801, 32)),
    "crop_prob": 0.5,
    "crop_shorter_sides": [400, 500, 600],
    "crop_size": [384, 600],
}
AT_800 = Preprocessing(size=(800, 1333), resize="shortest")
CPU = torch.device("cpu")


def view(size: int = 800, **options: Any) -> MultiScaleObjects:
    return VIEWS["detection"].training(AT_800.at(size), [], "cpu", **(OPTIONS | options))


def painted(height: int, width: int, seed: int, crowd: bool = False) -> tuple[Example, list[int]]:
    """A black image with bright ellipses and rectangles, each of one red value, and that value for each object."""
    at = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width]
    masks, boxes, values = [], [], []
    for number in range(4):
        top, left = number // 2 * height // 2, number % 2 * width // 2
        h, w = (int(at.uniform(0.4, 0.9) * side / 2) for side in (height, width))
        top, left = top + int(at.integers(height // 2 - h)), left + int(at.integers(width // 2 - w))
        inside = (rows >= top) & (rows < top + h) & (columns >= left) & (columns < left + w)
        if number % 2:
            y, x = (rows + 0.5 - top) / h * 2 - 1, (columns + 0.5 - left) / w * 2 - 1
            inside &= x**2 + y**2 <= 1
        value = 60 * (number + 1)
        pixels[inside] = (value, 255 - value, 255)
        masks.append(mask_coder().encode(np.asfortranarray(inside.astype(np.uint8))))
        boxes.append([left, top, left + w, top + h])
        values.append(value)
    objects = Objects(
        np.array(boxes, dtype=np.float32),
        np.arange(4),
        np.array([crowd and number == 3 for number in range(4)]),
        np.array([mask_coder().area(mask) for mask in masks], dtype=np.float32),
        masks,
        seed,
    )
    return Example(Image.fromarray(pixels), objects, f"{seed}.png"), values


def sample(made: Any, example: Example, seed: int) -> Any:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return made.sample(example)


def extent(mask: Tensor) -> list[int]:
    """left, top, right, bottom of the pixels in a mask."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


@pytest.mark.parametrize("seed", range(60))
def test_image_boxes_and_masks_move_alike(seed: int) -> None:
    """The pixels with an object's color, its mask and its box agree within a pixel, wherever the object went.

    Sizes are of COCO's images, enlarged and reduced; a third of the crops cut objects.
    """
    height, width = [(90, 120), (150, 100), (300, 410)][seed % 3]
    example, values = painted(height, width, seed)
    pixels, boxes, labels, masks = sample(view(160), example, seed)
    assert pixels.dtype == masks.dtype == torch.uint8 and masks.shape == (len(labels), *pixels.shape[:2])
    assert boxes.dtype == torch.float32 and labels.dtype == torch.int64
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= torch.tensor(pixels.shape[1::-1])).all()
    blue = pixels[..., 2].float()
    for box, label, mask in zip(boxes, labels, masks, strict=True):
        # A pixel has an object's color where it is bright and its red is nearest to the object's.
        red = pixels[..., 0].float() / blue.clamp(min=1) * 255
        of_color = (blue > 127) & ((red - values[int(label)]).abs() < 30)
        inside = mask.bool()
        overlap = (of_color & inside).sum() / (of_color | inside).sum().clamp(min=1)
        outline = 2 * sum(box[2:] - box[:2])
        assert (of_color ^ inside).sum() <= 1.1 * outline, f"object {label}: overlap {overlap:.2f}"
        if inside.sum() > 40:
            enlarged = max(1.0, pixels.shape[0] / height)
            assert (torch.tensor(extent(of_color)) - torch.tensor(extent(inside))).abs().max() <= 2 * enlarged
            # A crop may cut an ellipse, so that its box reaches beyond the pixels that remain.
            left, top, right, bottom = extent(inside)
            reach = torch.tensor([left - box[0], top - box[1], box[2] - right, box[3] - bottom])
            assert (reach > -1 - enlarged).all()
            if label % 2 == 0:
                assert (reach < 1 + enlarged).all()


def test_whatever_is_in_the_crop_stays_and_nothing_else() -> None:
    """The objects that are left out are those without a pixel in the crop."""
    left_out = 0
    for seed in range(40):
        example, values = painted(150, 200, seed)
        pixels, _, labels, _ = sample(view(160, crop_prob=1.0, crop_size=[150, 400]), example, seed)
        for number, value in enumerate(values):
            blue = pixels[..., 2].float()
            visible = ((blue > 200) & ((pixels[..., 0].float() - value).abs() < 8)).sum()
            if number in labels:
                continue
            left_out += 1
            assert visible < 20
    assert left_out > 5, "otherwise this test tests nothing"


def test_a_flip_is_the_mirror_image() -> None:
    example, _ = painted(90, 120, 0)
    plain, flipped = (sample(view(160, hflip=p, crop_prob=0.0), example, 0) for p in (0.0, 1.0))
    width = plain.pixels.shape[1]
    assert torch.equal(flipped.pixels, plain.pixels.flip(1)) and torch.equal(flipped.masks, plain.masks.flip(2))
    torch.testing.assert_close(
        flipped.boxes,
        plain.boxes[:, [2, 1, 0, 3]].mul(torch.tensor([-1, 1, -1, 1])).add(torch.tensor([width, 0, width, 0])),
    )


def test_sides_are_those_of_the_policy_and_change_with_the_image_size() -> None:
    """At 800 they are DETR's. At other sizes they are in proportion, and the longest one follows the preprocessing."""
    assert view().policy[1:] == (OPTIONS["shorter_sides"], 1333, 0.5, [400, 500, 600], [384, 600])
    small = view(96).policy
    assert small.shorter_sides == [58, 61, 65, 69, 73, 77, 81, 84, 88, 92, 96] and small.longest_side == 160
    assert (small.crop_shorter_sides, small.crop_size) == ([48, 60, 72], [46, 72])
    example, wide = painted(90, 120, 0)[0], painted(60, 240, 0)[0]
    shorter = {min(sample(view(96, crop_prob=0.0), example, seed).pixels.shape[:2]) for seed in range(80)}
    assert shorter == set(small.shorter_sides)
    assert {max(sample(view(96, crop_prob=0.0), wide, seed).pixels.shape[:2]) for seed in range(9)} == {160}


def test_crops_have_the_sizes_of_the_policy() -> None:
    """In pixels of an image whose shorter side is 400, 500 or 600, height and width are 384 to 600, or the whole."""
    made, height, width = view(crop_prob=1.0), 480, 640
    crops = []
    for seed in range(300):
        random.seed(seed)
        top, left, h, w = made.draw_crop(height, width)
        assert 0 <= top <= height - h and 0 <= left <= width - w
        crops.append((h, w))
    heights, widths = zip(*crops, strict=True)
    assert min(heights) >= 0.99 * 384 * 480 / 600 and max(heights) == 480, "at 400 pixels the crop may be whole"
    assert min(widths) >= 0.99 * 384 * 480 / 600 and max(widths) > 630
    assert len({w / h > 1 for h, w in crops}) == 2, "height and width are drawn on their own"
    random.seed(0)
    kept = [view().draw_crop(480, 640) == (0, 0, 480, 640) for _ in range(400)]
    assert 0.4 < np.mean(kept) < 0.62, "without a crop in half of the cases"


def test_the_view_depends_on_the_seed_alone() -> None:
    example, made = painted(90, 120, 0)[0], view(160)
    first, _, again, other = (sample(made, example, seed) for seed in (1, 5, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first.pixels.shape != other.pixels.shape or not torch.equal(first.pixels, other.pixels)


def test_crowds_are_not_trained_on() -> None:
    plain = sample(view(160, crop_prob=0.0), painted(90, 120, 3)[0], 0)
    without = sample(view(160, crop_prob=0.0), painted(90, 120, 3, crowd=True)[0], 0)
    assert plain.labels.tolist() == [0, 1, 2, 3] and without.labels.tolist() == [0, 1, 2]
    assert torch.equal(plain.masks[:3], without.masks)


# Batches.


def samples(count: int = 3) -> list[Sample]:
    return [sample(view(96), painted(90 + 40 * i, 120, i)[0], i) for i in range(count)]


def batch_of(made: MultiScaleObjects, of: list[Sample]) -> ObjectBatch:
    return made.to_device(made.collate(of), CPU, list(range(len(of))), [0])


def test_a_batch_is_as_large_as_its_largest_image_needs() -> None:
    of = samples()
    batch = batch_of(view(96), of)
    height, width = (max(s.pixels.shape[axis] for s in of) for axis in (0, 1))
    assert batch.images.shape == (3, 3, -(-height // 32) * 32, -(-width // 32) * 32)
    assert batch.sizes == [tuple(s.pixels.shape[:2]) for s in of] and batch.seeds == [0, 1, 2]
    for image, (h, w), target, s in zip(batch.images, batch.sizes, batch.targets, of, strict=True):
        torch.testing.assert_close(image[:, :h, :w], AT_800.normalize(s.pixels[None])[0], rtol=0, atol=0)
        assert not image[:, h:].any() and not image[:, :, w:].any(), "padding is zero, which is the mean color"
        assert torch.equal(target["boxes"], s.boxes) and torch.equal(target["labels"], s.labels)
        assert torch.equal(target["masks"], s.masks) and target["masks"].dtype == torch.uint8


def test_images_without_objects_fit_into_a_batch() -> None:
    example, _ = painted(90, 120, 0)
    empty = Objects(
        np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0, np.float32), [], 1
    )
    for of in ([example._replace(target=empty)], [example._replace(target=empty), example]):
        batch = batch_of(view(96), [sample(view(96), one, 0) for one in of])
        h, w = batch.sizes[0]
        assert batch.targets[0]["boxes"].shape == (0, 4) and batch.targets[0]["masks"].shape == (0, h, w)
        assert len(batch.targets[-1]["labels"]) == 4 * (len(of) - 1)


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> COCO:
    return COCO(root=str(write_small_coco(tmp_path_factory.mktemp("coco"), images=5, size=96)))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_gives_the_same_batches_with_any_number_of_workers(
    coco: COCO, workers: int, no_worker_stays: None
) -> None:
    def batches(workers: int) -> list[ObjectBatch]:
        train = coco.train()
        order = TrainBatches(len(train), 2, seed=0)
        loader = TrainLoader(train, [view(96)], order, epochs=1, workers=workers, device=CPU)
        return [
            ObjectBatch(b.images.clone(), b.sizes, [{k: v.clone() for k, v in t.items()} for t in b.targets], b.seeds)
            for b in loader.epoch(0)
        ]

    found, expected = batches(workers), batches(0)
    assert len(found) == 2
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.images, other.images) and (one.sizes, one.seeds) == (other.sizes, other.seeds)
        for target, its in zip(one.targets, other.targets, strict=True):
            assert all(torch.equal(target[key], its[key]) for key in ("boxes", "labels", "masks"))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_shows_whole_images_and_all_objects(coco: COCO, workers: int, no_worker_stays: None) -> None:
    val, preprocessing = coco.val(), AT_800.at(64)
    loader = EvalLoader(val, VIEWS["detection"].evaluation(preprocessing, val.classes), 2, workers=workers, device=CPU)
    images = []
    for batch in loader:
        assert isinstance(batch, WholeImages)
        images += list(zip(*batch, strict=True))
    assert len(images) == len(val) == 5
    for index, (image, picture, original, truth) in enumerate(images):
        example = val[index]
        pixels = preprocessing.pixels(example.image.rgb())
        assert torch.equal(picture, pixels) and torch.equal(image, preprocessing.normalize(pixels[None]))
        assert original == (example.image.rgb().height, example.image.rgb().width) and min(picture.shape[:2]) == 64
        assert set(truth) == {"boxes", "labels", "crowd", "areas", "masks", "image_id"}
        assert truth["masks"] == example.target.masks and truth["image_id"] == example.target.image_id
        assert all(np.array_equal(truth[key], getattr(example.target, key)) for key in ("boxes", "labels", "crowd"))


# The image's orientation, and what is refused.


def turned(example: Example, orientation: int) -> Example:
    """The image as a file with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    example.image.save(file, "PNG", exif=exif)  # type: ignore[union-attr]
    return example._replace(image=EncodedImage(file.getvalue(), example.key))


def test_the_annotations_size_tells_whether_the_image_is_turned() -> None:
    evaluation = VIEWS["detection"].evaluation(AT_800.at(90), [])
    as_stored, _ = painted(90, 120, 0)
    pixels, size, _ = evaluation.sample(turned(as_stored, 6))
    assert size == (90, 120) and np.array_equal(pixels, np.asarray(as_stored.image)), "boxes are for the stored pixels"
    upright, _ = painted(120, 90, 0)
    stored = upright._replace(image=upright.image.transpose(Image.Transpose.ROTATE_90))  # type: ignore[union-attr]
    pixels, size, _ = evaluation.sample(turned(stored, 6))
    assert size == (120, 90) and np.array_equal(pixels, np.asarray(upright.image)), "boxes are for the upright image"


@pytest.mark.parametrize("orientation", [None, 1, 6])
def test_an_image_of_another_size_than_its_annotations_is_broken(orientation: int | None) -> None:
    example = painted(90, 120, 0)[0]._replace(image=Image.new("RGB", (60, 45)), key="a/7.jpg")
    example = turned(example, orientation) if orientation else example
    for made in (view(96), VIEWS["detection"].evaluation(AT_800, [])):
        with pytest.raises(BrokenImageError) as raised:
            made.sample(example)
        size = "45 × 60" if orientation == 6 else "60 × 45"
        assert str(raised.value) == f"a/7.jpg: has {size} pixels, but its annotations are for 120 × 90"


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: VIEWS["detection"].training(AT_800, [], "gpu", **OPTIONS), r"^data\.decode=gpu: not for this task"),
        (lambda: view_with(resize="crop"), r"^resize=crop: must be shortest, since objects are found in whole images$"),
        (lambda: view_with(bit_depth=16), r"^images of 3 channels with 16 bits: must be RGB images with 8 bits"),
        (
            lambda: view(160, shorter_sides=[480, 1400]),
            r"^augment\.shorter_sides: holds 1400; must be 13\d\d at most, the longest side of an image",
        ),
        (
            lambda: view(800, crop_shorter_sides=[2000]),
            r"^augment\.crop_shorter_sides: holds 2000; must be 1333 at most",
        ),
    ],
)
def test_what_the_view_cannot_do_is_refused(make: Callable[[], Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        make()


def view_with(**changed: Any) -> Any:
    return VIEWS["detection"].evaluation(dataclasses.replace(AT_800, **changed), [])


def test_masks_of_the_training_view_are_the_annotations(coco: COCO) -> None:
    """Without crop, flip and resize they are those of the data set."""
    example = coco.train()[0]
    height, width = example.target.size
    plain = VIEWS["detection"].training(
        Preprocessing(size=(72, 96), resize="shortest"), [], "cpu",
        hflip=0.0, shorter_sides=[800], crop_prob=0.0, crop_shorter_sides=[1], crop_size=[1, 1],
    )  # fmt: skip
    made = sample(plain, example, 0)
    assert np.array_equal(made.masks, decode_masks(example.target.masks, height, width))
    assert np.array_equal(made.boxes, example.target.boxes)
    assert np.array_equal(made.pixels, example.image.rgb())


def test_the_small_set_follows_from_its_seed(tmp_path: Path) -> None:
    one, same, other = (write_small_coco(tmp_path / str(i), images=3, size=64, seed=i // 2) for i in range(3))
    files = [path.relative_to(one) for path in sorted(one.rglob("*.*")) if path.is_file()]
    assert len(files) == 8 and all((one / file).read_bytes() == (same / file).read_bytes() for file in files)
    assert any((one / file).read_bytes() != (other / file).read_bytes() for file in files)
