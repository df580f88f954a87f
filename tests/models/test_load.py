"""xcit.load gives a run's model, its preprocessing and its class names from its path alone."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

import xcit
from xcit.preprocessing import Preprocessing
from xcit.storage import read_tensors, write_tensors

from ..conftest import TINY, Result, call_here
from ..engine.older_formats import as_version_2
from ..test_wheel import wheel  # noqa: F401  # a fixture
from .examples import same, tiny

pytestmark = pytest.mark.filterwarnings("error::xcit.Notice")

COLORS = {"green": (60, 190, 60), "red": (190, 60, 60)}
RUN = ("data=folder", "recipe=digits", "data.workers=0", "model.patch_size=8", *TINY[1:], "crop_ratio=0.9")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pictures of two classes."""
    folder = tmp_path_factory.mktemp("load")
    for split in ("train", "val"):
        for name, color in COLORS.items():
            (folder / "mine" / split / name).mkdir(parents=True)
            for number in range(8):
                pixels = np.full((30 + number, 40, 3), color, np.uint8)
                Image.fromarray(pixels).save(folder / "mine" / split / name / f"{number}.png")
    small = ("+model.depth=1", "model.lpi=false", "train.global_batch_size=8", "train.epochs=2")
    result = call_here("train.py", "data.root=mine", *RUN, *small, "run_dir=run", cwd=folder)
    assert result.status == 0, result.stderr
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, which a test may change."""
    return shutil.copytree(trained, tmp_path / "run")


def weights(path: Path, kind: str) -> dict[str, torch.Tensor]:
    content = read_tensors(path / "checkpoints" / "last.pt")
    return {key.removeprefix("model."): value for key, value in content[{"raw": "task"}.get(kind, kind)].items()}


def test_a_run_loads_in_one_line(run: Path) -> None:
    model, preprocessing, classes = loaded = xcit.load(run)
    assert isinstance(loaded, xcit.Loaded) and isinstance(model, xcit.XCiT)
    assert classes == ["green", "red"]
    assert preprocessing == Preprocessing().at(16, 0.9)
    assert not model.training
    validated = read_tensors(run / "checkpoints" / "last.pt")["validated"]
    assert same(model.state_dict(), weights(run, max(("ema", "raw"), key=lambda kind: validated[kind])))
    best = xcit.load(str(run / "checkpoints" / "best.pt"), kind="raw")
    assert best.classes == classes
    pictures = [Image.fromarray(np.full((30, 40, 3), color, np.uint8)) for color in COLORS.values()]
    assert model(preprocessing(pictures)).shape == (2, 2)


def test_timm_and_the_hub_know_the_size_and_the_classes_of_a_run(run: Path, tmp_path: Path) -> None:
    model, preprocessing, classes = xcit.load(run)
    data = timm.data.resolve_model_data_config(model)
    assert (data["input_size"], data["crop_pct"], data["crop_mode"]) == ((3, 16, 16), 0.9, "center")
    assert model.pretrained_cfg["label_names"] == classes
    model.save_pretrained(tmp_path / "saved")  # type: ignore[operator]
    again = xcit.load(tmp_path / "saved")
    assert (again.preprocessing, again.classes) == (preprocessing, classes)
    assert same(again.model.state_dict(), model.state_dict())
    back = xcit.XCiT.from_pretrained(tmp_path / "saved")
    assert back.pretrained_cfg == model.pretrained_cfg
    with pytest.warns(xcit.Notice):
        fine_tuned = xcit.create_model("xcit_n12", depth=1, lpi=False, patch_size=8, num_classes=3, pretrained=str(run))
    assert timm.data.resolve_model_data_config(fine_tuned)["input_size"] == (3, 16, 16)
    assert "label_names" not in fine_tuned.pretrained_cfg, "its classifier is new"


@pytest.mark.filterwarnings("default::xcit.Notice")
def test_an_average_that_lags_behind_is_told_of_and_the_raw_weights_are_loaded(run: Path) -> None:
    content = dict(read_tensors(run / "checkpoints" / "last.pt")) | {"validated": {"raw": 90.0, "ema": 50.0}}
    write_tensors(run / "checkpoints" / "last.pt", content)
    with pytest.warns(xcit.Notice, match="the moving average lags behind") as told:
        model = xcit.load(run).model
    assert len(told) == 1
    assert same(model.state_dict(), weights(run, "raw"))


def test_a_checkpoint_of_version_2_has_the_preprocessing_that_it_was_trained_with(run: Path) -> None:
    last = run / "checkpoints" / "last.pt"
    write_tensors(last, as_version_2(read_tensors(last)))
    model, preprocessing, classes = xcit.load(run)
    assert (preprocessing, classes) == (Preprocessing().at(16, 0.9), ["green", "red"])
    assert same(model.state_dict(), weights(run, "ema"))


def test_a_run_of_timms_models_loads_if_timm_is_there(
    command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = command("train.py", "model=timm", "model.name=resnet10t", *TINY[1:], "train.ema_decay=null", "run_dir=run")
    assert result.status == 0, result.stderr
    model, preprocessing, classes = xcit.load("run")
    assert classes == [str(digit) for digit in range(10)]
    assert preprocessing.size == (16, 16)
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 10)
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 16, 16)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(xcit.InputError, match=r"model\.name=resnet10t: is timm's, which is not installed"):
        xcit.load("run")


def test_published_weights_load_by_name_with_imagenets_classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    model = xcit.create_model("xcit_n12")
    torch.save({"model": model.state_dict()}, tmp_path / "checkpoints" / "xcit_nano_12_p16_384_dist.pth")
    for name in ("xcit_n12_p16.fb_dist_in1k_384", "xcit_nano_12_p16_384_dist"):
        loaded, preprocessing, classes = xcit.load(name)
        assert same(loaded.state_dict(), model.state_dict())
        assert preprocessing.size == (384, 384)
        assert classes is not None and (len(classes), classes[1]) == (1000, "goldfish, Carassius auratus")
    monkeypatch.setitem(sys.modules, "timm", None)  # the names do not come from there
    assert xcit.load("xcit_n12_p16.fb_dist_in1k_384").classes == classes


def test_weights_of_an_unknown_model_are_refused(tmp_path: Path) -> None:
    torch.save(tiny().state_dict(), tmp_path / "bare.pth")
    with pytest.raises(xcit.InputError, match=r"bare\.pth: does not say which model its weights are for"):
        xcit.load(tmp_path / "bare.pth")


LOAD = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, xcit
assert xcit.__file__.startswith(sys.argv[1]), xcit.__file__
model, preprocessing, classes = xcit.load(sys.argv[2])
assert model(preprocessing([torch.zeros(40, 50, 3, dtype=torch.uint8)])).shape == (1, 2)
print(*classes, *sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_a_run_loads_from_the_wheel(run: Path, wheel: Path, tmp_path: Path) -> None:  # noqa: F811
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    command: list[Any] = [sys.executable, "-c", LOAD, str(tmp_path / "installed"), str(run)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    first, second, *modules = done.stdout.split()
    assert (first, second) == ("green", "red")
    assert not set(modules) & {"hydra", "omegaconf", "timm", "torchvision", "pydantic", "rich", "data", "PIL"}
    assert not done.stderr, "no notice"
