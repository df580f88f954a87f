"""Copydays is read in its layout, and retrieval on it measures copy detection."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import xcit
from data.datasets.copydays import Copydays
from xcit.errors import InputError

from ...conftest import Result

skimage_data = pytest.importorskip("skimage.data")
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


@pytest.fixture(scope="module")
def copydays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG files of scikit-image's photographs in the layout of Copydays, and two distractors."""
    root = tmp_path_factory.mktemp("copydays")
    for folder in ("original", "strong", "jpegqual/15", "jpegqual/75", "crops/50"):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate(PHOTOGRAPHS):
        image = Image.fromarray(getattr(skimage_data, name)())
        width, height = image.size
        cropped = image.crop((width // 8, height // 8, width * 7 // 8, height * 7 // 8))
        first = f"{2000 + number}00.jpg"
        image.save(root / "original" / first, quality=95)
        image.save(root / "jpegqual/15" / first, quality=15)
        image.save(root / "jpegqual/75" / first, quality=75)
        cropped.save(root / "crops/50" / first)
        cropped.rotate(8).convert("L").save(root / "strong" / f"{2000 + number}01.jpg", quality=30)
    image.resize((width // 3, height // 3)).save(
        root / "strong" / f"{2000 + number}02.jpg"
    )  # a second copy of the last
    more = root / "more" / "below"
    more.mkdir(parents=True)
    Image.fromarray(skimage_data.retina()).resize((200, 200)).save(more / "a.jpg")
    Image.fromarray(skimage_data.brick()).convert("RGB").save(root / "more" / "b.jpg")
    return root


def test_an_original_and_its_copies_are_a_class(copydays: Path) -> None:
    source = Copydays(root=str(copydays), distractors=str(copydays / "more"))
    originals = source.train()
    assert originals.classes == ["2000", "2001", "2002", "2003", "distractor"]
    assert [(Path(example.key).name, example.target) for example in map(originals.__getitem__, range(6))] == [
        ("200000.jpg", 0), ("200100.jpg", 1), ("200200.jpg", 2), ("200300.jpg", 3), ("b.jpg", 4), ("a.jpg", 4)
    ]  # fmt: skip
    copies = source.val(originals.classes)
    assert [(Path(path).name, label) for path, label in copies.samples] == [
        ("200001.jpg", 0), ("200101.jpg", 1), ("200201.jpg", 2), ("200301.jpg", 3), ("200302.jpg", 3)
    ]  # fmt: skip
    lengths = {
        part: len(Copydays(root=str(copydays), part=part).val()) for part in ("jpegqual", "jpegqual/15", "crops")
    }
    assert lengths == {"jpegqual": 8, "jpegqual/15": 4, "crops": 4}


def test_what_is_missing_or_misnamed_is_told_in_one_line(copydays: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"weak: holds no images; expected original/.*; found crops/50, jpegqual/15, "):
        Copydays(root=str(copydays), part="weak").val()
    for folder in ("original", "strong"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "original" / "200000.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "strong" / "200101.jpg")
    with pytest.raises(InputError, match=r"original/2001: class is not in the training split"):
        Copydays(root=str(tmp_path)).val()
    Image.new("RGB", (8, 8)).save(tmp_path / "original" / "photo.jpg")
    with pytest.raises(InputError, match=r"photo\.jpg: must be named by a number such as 200301\.jpg"):
        Copydays(root=str(tmp_path)).train()


def test_retrieval_measures_copy_detection(command: Callable[..., Result], copydays: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    xcit.create_model("xcit_n12", patch_size=8, num_classes=10, image_size=64).save_pretrained(tmp_path / "mine")
    arguments = ("eval.py", "checkpoint=mine", "data=copydays", f"data.root={copydays}", "resolutions=[64]")
    found = {}
    for part in ("jpegqual/75", "strong"):
        options = (
            f"data.part={part}",
            f"data.distractors={copydays / 'more'}",
            "evaluate=retrieval",
            "run_dir=" + part,
        )
        result = command(*arguments, *options)
        assert result.status == 0, result.stderr
        (found[part],) = json.loads((tmp_path / part / "results.json").read_text())
    assert "6 training images" in result.stderr and "5 validation images" in result.stderr
    # Even an untrained model finds the original of a copy that only a JPEG encoder changed.
    assert found["jpegqual/75"]["retrieval_map"] == found["jpegqual/75"]["retrieval_recall1"] == 100
    assert found["strong"]["retrieval_map"] < 100
    assert (found["strong"]["queries"], found["strong"]["eval_set"]) == (5, "copydays")
