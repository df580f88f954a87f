"""Broken images: which are refused, replaced, counted or listed. test_worker_processes.py has the faults of workers."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
import torch
from PIL import Image

from data.datasets.folder import list_class_folders
from data.examples import Examples, View
from data.loader import EvalLoader, TrainLoader
from data.look import look_through, require_sound
from data.mixing import Mixing
from data.samplers import TrainBatches
from data.transforms import TrainTransform
from data.viewed_examples import ViewedExamples, ViewedSample
from data.views.labelled_crop import CenterLabelledCrop, LabelledImages, RandomLabelledCrop
from xcit.encoded_image import BrokenImageError
from xcit.errors import InputError
from xcit.preprocessing import Preprocessing

from .test_loader import CPU, DEIT, NEITHER

Tree = Callable[..., Path]


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def overwrite(path: Path) -> None:
    path.write_bytes(b"no image")


DAMAGES: dict[str, Callable[[Path], None]] = {"truncated": truncate, "no image": overwrite, "gone": Path.unlink}


def damaged(image_tree: Tree, count: int, damage: Callable[[Path], None] = truncate) -> tuple[Examples, list[Path]]:
    """Return ten images of two classes, and the paths of `count` of them, which are damaged."""
    root = image_tree("mine", {"train/cat": 5, "train/dog": 5}, ".jpg")
    images = list_class_folders(root / "train")
    paths = sorted(root.rglob("*.jpg"))[::-1][:count]
    for path in paths:
        damage(path)
    return images, paths


def augmented(images: Examples) -> RandomLabelledCrop:
    return RandomLabelledCrop(
        TrainTransform(Preprocessing(size=(16, 16)), **DEIT), Mixing(len(images.classes), **NEITHER)
    )


def loader(
    images: Examples, *, workers: int = 0, view: View | None = None, batch_size: int = 2, **more: float
) -> TrainLoader:
    return TrainLoader(
        images,
        [view or augmented(images)],
        TrainBatches(len(images), batch_size, seed=3),
        epochs=10,
        workers=workers,
        device=CPU,
        **more,
    )


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    """Raise a TimeoutError if the block takes longer. Otherwise a failure would be a test that hangs."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"hung for {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


pytestmark = pytest.mark.usefixtures("no_worker_stays")


# Broken images

ADVICE = "remove or convert these files, or raise data.max_broken"


def test_a_broken_image_is_replaced_by_another_that_follows_from_the_seed(image_tree: Tree) -> None:
    images, (path,) = damaged(image_tree, 1)
    number = [sample[0] for sample in images.samples].index(str(path))  # type: ignore[attr-defined]
    viewed = ViewedExamples(images, augmented(images), replace=True)
    chosen = set()
    for seed in range(20):
        found, again = viewed[number, seed], viewed[number, seed]
        assert isinstance(found, ViewedSample) and isinstance(again, ViewedSample)
        pixels, label, _ = found.sample
        assert torch.equal(pixels, again.sample[0])
        (message,) = set(found.broken)  # a set, because the broken image may be drawn again as its own replacement
        assert message.startswith(f"{path}: cannot be decoded (")
        others = [other for other in range(10) if other != number]
        same = [o for o in others if torch.equal(viewed.sample(o, seed)[0], pixels)]
        assert same and label in {images[other].target for other in same}
        chosen |= set(same)
    assert len(chosen) > 5


def test_replacements_are_the_same_in_any_number_of_workers_and_each_time(image_tree: Tree) -> None:
    images, _ = damaged(image_tree, 2)

    def run(workers: int) -> list[LabelledImages]:
        batches = loader(images, workers=workers, max_broken=0.2)
        return [batch for epoch in range(3) for batch in batches.epoch(epoch)]

    alone, again, helped = run(0), run(0), run(2)
    assert len(alone) == len(again) == len(helped) == 15
    for batches in zip(alone, again, helped, strict=True):
        for mine, *others in zip(*batches, strict=True):
            assert all(torch.equal(mine, other) for other in others)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("workers", [0, 2])
def test_each_broken_image_is_told_of_once(
    image_tree: Tree, capsys: pytest.CaptureFixture[str], damage: str, workers: int
) -> None:
    images, paths = damaged(image_tree, 2, DAMAGES[damage])
    batches = loader(images, workers=workers, max_broken=0.2)
    assert sum(len(batch.images) for epoch in range(4) for batch in batches.epoch(epoch)) == 40
    messages = capsys.readouterr().err.splitlines()
    assert sorted(message.split(":")[1].strip() for message in messages) == sorted(map(str, paths))
    assert all(message.startswith("note: ") for message in messages)
    assert messages[-1].endswith("; replaced by another image (2 so far)")
    assert len(batches.broken.known) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_one_more_than_may_be_broken_ends_the_run(
    image_tree: Tree, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    images, paths = damaged(image_tree, 3)
    batches = loader(images, workers=workers, max_broken=0.2)
    with pytest.raises(BrokenImageError) as caught:
        list(batches.epoch(0))
    first, *lines = str(caught.value).splitlines()
    assert first == f"data: broken training images so far: 3, of 10; data.max_broken=0.2 allows 2; {ADVICE}:"
    assert sorted(line.split(":")[0].strip() for line in lines) == sorted(map(str, paths))
    assert len(batches.broken.known) == 3
    assert len(capsys.readouterr().err.splitlines()) == 2  # the error reports the last one


def test_by_default_a_broken_image_ends_the_run_and_all_of_them_are_listed(image_tree: Tree) -> None:
    images, paths = damaged(image_tree, 1)
    with pytest.raises(BrokenImageError, match=rf"far: 1, of 10; data\.max_broken=0 allows 0; {ADVICE}$") as caught:
        list(loader(images).epoch(0))
    assert str(caught.value).split(":")[0] in map(str, paths)
    for path in (more := [str(path) for path in Path(paths[0]).parents[1].rglob("00[13].jpg")]):
        truncate(Path(path))
    with pytest.raises(BrokenImageError) as caught:
        for _ in loader(images).epoch(0):
            pass
    listed = {line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]}
    assert listed == {str(paths[0]), *more}


def test_pixels_that_do_not_fit_the_settings_name_them(image_tree: Tree) -> None:
    images = list_class_folders(image_tree("mine", {"cat": 3, "dog": 3}))
    deep = Preprocessing(size=(16, 16), bit_depth=16)
    plain = DEIT | {"color_jitter": 0.0, "rand_augment": None}
    view = RandomLabelledCrop(TrainTransform(deep, **plain), Mixing(2, **NEITHER))
    with pytest.raises(BrokenImageError, match=r"allows 0; correct data.bit_depth, or remove or convert these files"):
        list(loader(images, view=view).epoch(0))
    looked = look_through(EvalLoader(images, CenterLabelledCrop(deep, 2), 4, workers=0, device=CPU))
    with pytest.raises(InputError, match=r"must be readable: correct data.bit_depth, or remove or convert this file$"):
        require_sound([looked], 6)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_are_all_broken_are_an_error(image_tree: Tree, workers: int) -> None:
    images, paths = damaged(image_tree, 10)
    with limit(30), pytest.raises(BrokenImageError, match="cannot be decoded") as caught:
        list(loader(images, workers=workers, max_broken=1.0).epoch(0))
    assert str(caught.value).split(":")[0] in map(str, paths)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("workers", [0, 2])
def test_no_image_of_an_evaluation_is_replaced(image_tree: Tree, damage: str, workers: int) -> None:
    images, (path,) = damaged(image_tree, 1, DAMAGES[damage])
    with pytest.raises(BrokenImageError, match="cannot be") as caught:
        view = CenterLabelledCrop(Preprocessing(size=(16, 16)), len(images.classes))
        list(EvalLoader(images, view, 4, workers=workers, device=CPU))
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_image_with_too_many_pixels_is_broken(
    image_tree: Tree, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Pillow's own limit has no influence."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    images = list_class_folders(image_tree("mine", {"cat": 4, "dog": 4}, suffix))
    view = CenterLabelledCrop(Preprocessing(size=(16, 16)), 2)
    largest = 23 * 24
    assert sum(len(batch.images) for batch in loader(images, max_pixels=largest).epoch(0)) == 8
    assert sum(len(batch.images) for batch in EvalLoader(images, view, 4, workers=0, device=CPU, max_pixels=largest))
    message = rf"003{suffix}: cannot be decoded \(it has more pixels than data\.max_pixels={largest - 1} allows\)"
    with pytest.raises(BrokenImageError, match=message):
        list(loader(images, max_pixels=largest - 1).epoch(0))
    with pytest.raises(BrokenImageError, match=message):
        list(EvalLoader(images, view, 4, workers=0, device=CPU, max_pixels=largest - 1))
    assert Image.MAX_IMAGE_PIXELS == 100
