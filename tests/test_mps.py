"""Devices: which one is chosen, and that runs on MPS compute nothing in float64 there and mix no devices."""

from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import xcit
from xcit.device import default_device, in_float64, moved
from xcit.engine import distributed
from xcit.evaluation.attention import keep_mass
from xcit.evaluation.features import Features
from xcit.evaluation.linear_probe import LinearProbe
from xcit.evaluation.regression import ValueMetrics
from xcit.evaluation.retrieval import Retrieval
from xcit.evaluation.segmentation import Segmentation

from .conftest import TINY, Result
from .pretended_mps import MPS, GeneratorOnMPS, PretendedMPS

CPU = torch.device("cpu")


@pytest.fixture
def _mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XCIT_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", cache(lambda: True))  # torch's own is cached, too


@pytest.fixture
def _mps(_mac: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch, "Generator", GeneratorOnMPS)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter's type says where it is
    with PretendedMPS():
        yield
    torch.__future__.set_overwrite_module_params_on_conversion(before)


@pytest.mark.usefixtures("_mac")
def test_a_gpu_is_chosen_unless_another_device_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with distributed.session() as device:
        assert device == default_device() == torch.device("mps")
    monkeypatch.setenv("XCIT_DEVICE", "cpu")
    with distributed.session() as device:
        assert device == default_device() == CPU
    monkeypatch.setenv("XCIT_DEVICE", "cuda")
    with pytest.raises(xcit.InputError, match=r"^XCIT_DEVICE=cuda: must be mps or cpu on this machine$"):
        default_device()
    monkeypatch.delenv("XCIT_DEVICE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_device() == torch.device("cuda")


@pytest.mark.usefixtures("_mac")
def test_several_processes_are_refused_on_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(xcit.InputError, match="must be 1 with MPS"), distributed.session():
        pass


@pytest.mark.usefixtures("_mps")
def test_the_pretended_device_refuses_what_mps_refuses() -> None:
    x = torch.ones(2, 3, device="mps")
    assert x.device == (x + 1).device == nn.Linear(3, 2).to(x.device)(x).device == MPS
    assert x.cpu().device == in_float64(x).device == CPU
    for refused in (x.double, x.numpy, lambda: x + torch.ones(3), lambda: torch.zeros(1, dtype=torch.float64).to(MPS)):
        with pytest.raises((TypeError, RuntimeError)):
            refused()


@pytest.mark.usefixtures("_mps")
def test_a_run_its_evaluation_and_its_predictions(command: Callable[..., Result]) -> None:
    """Training with a scaled loss, validation, EMA, checkpoints, an evaluation of the checkpoint, and answers."""
    small = ("model.depth=1", "model.class_depth=1", "train.updates=2", "train.epochs=null", "data.train_fraction=0.2")
    result = command("train.py", "run_dir=run", *TINY, *small, "resolutions=[16]", "train.precision=fp16")
    assert (result.status, result.stderr.splitlines()[0]) == (0, "device      Apple MPS, 1 process, fp16")
    assert command("eval.py", "checkpoint=run", "run_dir=found").status == 0
    classifier = xcit.Classifier("run")
    assert classifier.device.type == "mps"
    pixels = [torch.zeros(16, 16, 3, dtype=torch.uint8)]
    torch.testing.assert_close(classifier.logits(pixels), xcit.Classifier("run", device="cpu").logits(pixels))


def regression(device: torch.device) -> dict[str, float]:
    random = np.random.default_rng(0)
    mean, std, truth, images = (
        torch.tensor(values, dtype=torch.float32).to(device)
        for values in ([1.0, 2.0], [1.0, 3.0], random.normal(size=(7, 2)), random.normal(size=(7, 2)))
    )
    truth[0, 1] = torch.nan
    evaluator = ValueMetrics(lambda x: x, lambda a, b: F.mse_loss(a, b, reduction="none"), ["a", "b"], mean, std)
    evaluator.update(SimpleNamespace(images=images, targets=truth))
    return evaluator.compute()


def segmentation(device: torch.device) -> dict[str, float]:
    scores = torch.linspace(0, 9, 3 * 4 * 4).sin().view(1, 3, 4, 4).softmax(1).to(device)
    truth = torch.arange(16).view(4, 4) % 4 - 1
    evaluator = Segmentation(lambda image, size: iter([(0, image[0])]), ["a", "b", "c"], device)
    evaluator.update(
        SimpleNamespace(images=[scores], masks=[truth.to(device)], pictures=[torch.zeros(4, 4, 3, dtype=torch.uint8)])
    )
    metrics = evaluator.compute()
    evaluator.details()
    return metrics


def of_features(device: torch.device) -> dict[str, float]:
    vectors = torch.linspace(0, 99, 24 * 4).sin().view(24, 4)
    features = Features(vectors, torch.arange(24) % 3)
    return {
        name: value
        for method in (Retrieval(), LinearProbe(epochs=2))
        for name, value in method.score(features, features, 3, device).items()
    }


def attention(device: torch.device) -> dict[str, float]:
    kept: Tensor = keep_mass(torch.linspace(0, 9, 32).sin().square().view(2, 4, 4).to(device), 0.6)
    assert kept.device == device
    return {str(place): 1.0 for place in kept.nonzero().tolist()}


@pytest.mark.usefixtures("_mps")
@pytest.mark.parametrize("measure", [regression, segmentation, of_features, attention])
def test_sums_in_float64_are_those_of_the_cpu(measure: Callable[[torch.device], dict[str, float]]) -> None:
    assert measure(MPS) == measure(CPU)


def test_only_copies_to_cuda_return_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, bool] = {}
    x = SimpleNamespace(to=lambda device, non_blocking: asked.setdefault(device.type, non_blocking))
    for name in ("cpu", "cuda", "mps"):
        moved(x, torch.device(name))  # type: ignore[arg-type]
    assert asked == {"cpu": False, "cuda": True, "mps": False}
