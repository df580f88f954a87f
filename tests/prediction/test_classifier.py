"""xcit.Classifier says what eval.py measures, bit for bit, for images of every kind."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage import data as photographs
from timm.data import ImageNetInfo
from torch import Tensor, nn

import xcit
from data.datasets.folder import Folder
from data.loader import EvalLoader
from data.views.labelled_crop import evaluation_view
from xcit.imagenet_names import IMAGENET
from xcit.prediction.answers import KINDS, Head
from xcit.prediction.classifier import Trained
from xcit.preprocessing import Preprocessing
from xcit.storage import read_tensors, write_tensors
from xcit.tasks import TASKS
from xcit.tasks.load import load_task

from ..tasks.checkpoints import CLASSES, MODEL, SIZE, write_checkpoint

OF_16_BITS = {"channels": 4, "bit_depth": 16, "mean": [0.4, 0.5, 0.3, 0.6], "std": [0.2, 0.3, 0.25, 0.2]}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """val/CLASS/*.png, a photograph in each class."""
    pictures = (photographs.astronaut(), photographs.coffee(), photographs.chelsea())
    for name, pixels in zip(CLASSES, pictures, strict=True):
        for split in ("train", "val"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            Image.fromarray(pixels).resize((90, 70)).save(folder / "one.png")
    return tmp_path / "photos"


def of_16_bits(run: Path, photos: Path) -> None:
    """Make a run and images of four channels with 16 bits of those with three of 8."""
    path = run / "checkpoints" / "last.pt"
    content = dict(read_tensors(path))
    content["preprocessing"] |= OF_16_BITS
    stem = "model.patch_embed.proj.0.0.weight"
    for kind in ("task", "ema"):
        content[kind] = dict(content[kind])
        content[kind][stem] = torch.cat([content[kind][stem], content[kind][stem][:, :1]], 1)
    write_tensors(path, content)
    for number, found in enumerate(sorted(photos.rglob("*.png"))):
        with Image.open(found) as picture:
            pixels = np.asarray(picture)[..., [0, 1, 2, 0]].astype(np.uint16) * 257 // 2 + number
        found.unlink()
        tifffile.imwrite(found.with_suffix(".tif"), pixels, photometric="minisblack", planarconfig="contig")


def logits_of_eval(run: Path, photos: Path, batch_size: int) -> Tensor:
    """The logits in eval.py's own path: data set, loader, view and task."""
    examples = Folder(root=str(photos)).val(list(CLASSES))
    task, preprocessing, classes, _ = load_task(run)
    seen: list[Tensor] = []
    evaluator: Any = task.evaluator()
    model: nn.Module = evaluator.model
    model.register_forward_hook(lambda module, given, found: seen.append(found.clone()))
    view = evaluation_view(preprocessing.at(SIZE, preprocessing.crop_ratio), classes)
    with torch.inference_mode():
        for batch in EvalLoader(examples, view, batch_size, workers=0, device=torch.device("cpu")):
            evaluator.update(batch)
    return torch.cat(seen).float()


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("bits", [8, 16])
def test_logits_are_those_of_an_evaluation(tmp_path: Path, photos: Path, bits: int, batch_size: int) -> None:
    run = write_checkpoint(tmp_path / "run", "classify")
    if bits == 16:
        of_16_bits(run, photos)
    paths = sorted(path for path in photos.rglob("val/*/*"))
    answers = xcit.Classifier(run, device="cpu", batch_size=batch_size)(paths)
    expected = logits_of_eval(run, photos, batch_size)
    assert torch.equal(torch.stack([answer.logits for answer in answers]), expected)
    assert expected.std(0).min() > 0, "the images must differ"


def test_images_of_every_type_give_the_answer_of_their_file(tmp_path: Path, photos: Path) -> None:
    run = write_checkpoint(tmp_path / "run", "classify")
    path = photos / "val" / "circle" / "one.png"
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    classifier = xcit.Classifier(run, device="cpu", top=2, batch_size=1)
    tensor = torch.from_numpy(pixels.copy())
    images = [path, str(path), path.read_bytes(), Image.fromarray(pixels), pixels, tensor]
    expected = classifier(path)[0]
    for image, answer in zip(images, classifier(iter(images)), strict=True):
        assert torch.equal(answer.logits, expected.logits), type(image)
        assert torch.equal(classifier(image)[0].logits, expected.logits)
    assert len(classifier(np.stack([pixels, pixels]))) == 2
    assert len(classifier(np.array([str(path), str(path)]))) == 2, "a column of a table"
    shares = expected.logits.softmax(0)
    assert expected.indices == shares.argsort(descending=True)[:2].tolist()
    assert expected.probabilities == [float(shares[i]) for i in expected.indices]
    assert expected.names == [CLASSES[i] for i in expected.indices]
    assert "logits" not in repr(expected)


def test_a_generator_is_read_as_its_answers_are_taken(tmp_path: Path) -> None:
    taken: list[int] = []

    def images() -> Iterator[np.ndarray]:
        for number in range(1000):
            taken.append(number)
            yield np.full((SIZE, SIZE, 3), number % 256, np.uint8)

    classifier = xcit.Classifier(write_checkpoint(tmp_path / "run", "classify"), device="cpu", batch_size=2)
    next(classifier.stream(images()))
    assert len(taken) < 100


def test_labels_have_thresholds_and_numbers_their_own_units() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.0]])
    state = {"thresholds": torch.tensor([0.9, 0.2, 0.5]), "mean": torch.tensor([1.0, 2.0, 3.0])}
    labels = Head.of_task("multilabel", CLASSES, state).answers(logits, 2)[0]
    assert (labels.names, labels.found) == (["circle", "triangle"], ["square"])
    assert labels.probabilities == logits[0].sigmoid()[[0, 2]].tolist()
    numbers = Head.of_task("regress", CLASSES, state | {"std": torch.tensor([1.0, 10.0, 2.0])}).answers(logits, 1)[0]
    assert (numbers.names, numbers.values, numbers.probabilities) == (list(CLASSES), [3.0, -8.0, 3.0], [])


def test_the_kinds_of_answers_are_those_of_the_tasks() -> None:
    for name, kind in KINDS.items():
        if name in TASKS:
            assert TASKS[name].target_kinds == (kind,)


def test_imagenets_names_are_those_of_timm() -> None:
    assert list(IMAGENET) == list(ImageNetInfo("imagenet-1k").label_descriptions())


@pytest.mark.parametrize(
    ("images", "line"),
    [
        (["none.jpg"], r"^none.jpg: cannot be read \(No such file or directory\)$"),
        ([b"no image"], r"^images\[0\]: cannot be decoded \(unknown image format\)$"),
        (np.zeros((3, 8, 9), np.uint8), r"^images\[0\]: image of shape \(3, 8, 9\): must be \(H, W, 3\)$"),
        ([np.zeros((8, 9, 3))], r"^images\[0\]: image of float64: must hold integers from 0 to 255; only a run"),
        (7, "^images of type int: must be paths, bytes, Pillow images, arrays or tensors$"),
        ([None], r"^images\[0\]: image of type NoneType: must be a Pillow image"),
    ],
)
def test_an_image_that_cannot_be_taken_is_named_in_one_line(tmp_path: Path, images: Sequence[Any], line: str) -> None:
    classifier = xcit.Classifier(write_checkpoint(tmp_path / "run", "classify"), device="cpu")
    with pytest.raises(xcit.InputError, match=line):
        classifier(images)


def test_a_package_that_is_missing_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "xcit.prediction.classifier")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(xcit.InputError, match=r"^xcit\.Classifier: needs PIL, which is not installed; pip install"):
        _ = xcit.Classifier


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"top": 0}, "top=0: must be at least 1"),
        ({"batch_size": -1}, "batch_size=-1: must be at least 1"),
        ({"device": "gpu"}, "device=gpu: "),
        ({"weights": "raw"}, "weights=raw: is for a source that is not loaded yet"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(options: dict[str, Any], line: str) -> None:
    trained = Trained(nn.Identity(), Preprocessing(), Head("class", CLASSES))
    with pytest.raises(xcit.InputError, match=line):
        xcit.Classifier(trained, **options)


def test_a_run_without_such_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(xcit.InputError, match="run: was trained with task=detect, not with one of classify, distill"):
        xcit.Classifier(write_checkpoint(tmp_path / "run", "detect"))
    options = {key: value for key, value in MODEL.items() if key != "name"}
    xcit.create_model(MODEL["name"], num_classes=0, **options).save_pretrained(tmp_path / "backbone")
    with pytest.raises(xcit.InputError, match="backbone: is a backbone without a classifier"):
        xcit.Classifier(tmp_path / "backbone")
