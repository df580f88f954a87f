"""A pickle can contain code. Everything that reads weights refuses such a file before the code runs."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import xcit
from xcit.checkpoint import FORMAT, LAST
from xcit.engine.state import read_state
from xcit.preprocessing import Preprocessing
from xcit.saved import read_checkpoint
from xcit.tasks.teacher import Teacher
from xcit.weights import published

from ..models.examples import Intruder, tiny
from .hosts import serve

REFUSAL = r"not a file of weights \(tensors and plain data are read, code is not\)"


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path) -> object:
    """The marker file that malicious code would create must not exist after a test."""
    yield
    assert not Intruder(tmp_path).mark.exists()


@pytest.fixture(params=["bare", "model", "DINO", "run", "beside the weights", "pickle", "legacy"])
def evil(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    """The content of a file that torch saved, with malicious code somewhere in it."""
    code, path, weights = Intruder(tmp_path), tmp_path / "made.pth", tiny().state_dict()
    content = {
        "bare": {"head.weight": code},
        "model": {"model": weights | {"head.weight": code}},
        "DINO": {"student": {}, "teacher": {"backbone.head.weight": code}},
        "run": {"format": FORMAT, "task": {}, "ema": None, "identity": code},
        "beside the weights": {"model": weights, "args": code},
    }.get(request.param, code)
    if request.param == "pickle":
        return pickle.dumps(content)
    torch.save(content, path, _use_new_zipfile_serialization=request.param != "legacy")
    made = path.read_bytes()
    path.unlink()
    return made


def test_the_code_would_run_where_it_is_read_carelessly(evil: bytes, tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    path.write_bytes(evil)
    try:
        torch.load(path, weights_only=False)
    except RuntimeError:  # a plain pickle is not in torch's format
        pickle.loads(evil)
    assert Intruder(tmp_path).mark.exists()
    Intruder(tmp_path).mark.unlink()


def teacher_of(path: Path) -> object:
    device = torch.device("cpu")
    return Teacher("test_resnet", 7, weights=str(path), image_size=None, student=Preprocessing(), device=device)


READERS: dict[str, Callable[[Path], object]] = {
    "load_weights": lambda path: xcit.load_weights(tiny(), path),
    "create_model": lambda path: xcit.create_model("xcit_n12", depth=1, pretrained=str(path)),
    "eval.py": lambda path: read_checkpoint(path, {}),
    "resume": read_state,
    "teacher": teacher_of,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_carries_code_is_refused(reader: str, evil: bytes, tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    path.write_bytes(evil)
    with pytest.raises(xcit.InputError, match=rf"evil\.pth: {REFUSAL}"):
        READERS[reader](path)


@pytest.mark.parametrize("reader", ["load_weights", "create_model", "teacher"])
def test_a_run_folder_whose_checkpoint_carries_code_is_refused(reader: str, evil: bytes, tmp_path: Path) -> None:
    last = tmp_path / "run" / LAST
    last.parent.mkdir(parents=True)
    last.write_bytes(evil)
    with pytest.raises(xcit.InputError, match=rf"last\.pt: {REFUSAL}"):
        READERS[reader](tmp_path / "run")


@pytest.mark.parametrize("name", ["model.safetensors", "evil.safetensors"])
def test_a_pickle_named_safetensors_is_refused(name: str, evil: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(evil)
    source = tmp_path if name == "model.safetensors" else tmp_path / name
    with pytest.raises(xcit.InputError, match=r"\.safetensors: not a file of weights"):
        xcit.load_weights(tiny(), source)


def test_a_saved_model_that_carries_code_is_refused(evil: bytes, tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "model.safetensors").write_bytes(evil)
    with pytest.raises(xcit.InputError, match="not a file of weights"):
        xcit.XCiT.from_pretrained(tmp_path / "saved")


def test_a_download_that_carries_code_is_refused_now_and_from_the_cache(
    evil: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    with serve() as host:
        monkeypatch.setattr(published, "HOST", f"{host.url}/")
        host.files = {"/evil.pth": evil, "/xcit_nano_12_p16_224.pth": evil}
        for source in (f"{host.url}/evil.pth", "xcit_n12_p16.fb_in1k"):
            for _ in range(2):
                with pytest.raises(xcit.InputError, match=REFUSAL):
                    xcit.load_weights(tiny(), source)


def test_a_whole_module_is_code_too(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1), tmp_path / "module.pth")
    with pytest.raises(xcit.InputError, match=REFUSAL):
        xcit.load_weights(tiny(), tmp_path / "module.pth")
