"""Decoding on the device gives the crops of decoding in workers, or an error that says why it cannot run."""

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from data.datasets.image_files import ImageFiles
from data.gpu_decoding import EncodedBatch, GpuTrainTransform, require_decoding
from data.loader import TrainLoader
from data.mixing import Mixing
from data.samplers import TrainBatches
from data.transforms import TrainTransform
from data.views.labelled_crop import RandomLabelledCrop
from xcit.encoded_image import BrokenImageError, EncodedImage
from xcit.errors import InputError
from xcit.preprocessing import Preprocessing

from ..conftest import TINY, Result
from .test_crops import encoded, photograph

CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LIGHT: dict[str, Any] = {
    "scale": (0.08, 1.0),
    "ratio": (3 / 4, 4 / 3),
    "hflip": 0.5,
    "color_jitter": 0.0,
    "rand_augment": None,
    "erase_prob": 0.25,
}


def files(folder: Path) -> ImageFiles:
    """Write JPEGs of several sizes. The third image is a PNG and the sixth a gray JPEG, which workers decode."""
    for number in range(12):
        picture = photograph(90 + 7 * number, 130 - 5 * number)
        image = encoded(picture, "PNG") if number == 2 else encoded(picture.convert("L" if number == 5 else "RGB"))
        (folder / f"{number:02}.jpg").write_bytes(image.data)
    return ImageFiles.from_samples([(str(path), 0) for path in sorted(folder.iterdir())], ["one", "two"])


def batches(images: ImageFiles, transform: TrainTransform, workers: int, device: torch.device = CPU) -> list[Any]:
    loader = TrainLoader(
        images,
        [RandomLabelledCrop(transform, Mixing(2, mixup=0.0, cutmix=0.0, switch_prob=0.5, label_smoothing=0.1))],
        TrainBatches(len(images), 4, seed=1),
        epochs=1,
        workers=workers,
        device=device,
    )
    return [batch._replace(images=batch.images.cpu().clone()) for batch in loader.epoch(0)]


@pytest.fixture(params=["torchcodec.decoders", "torchvision.io"])
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library that decodes: torchcodec, or torchvision where torchcodec is not installed."""
    module, calls = pytest.importorskip(request.param), []
    decode = module.decode_jpeg
    monkeypatch.setattr(module, "decode_jpeg", lambda *given, **named: calls.append(given) or decode(*given, **named))
    if request.param == "torchvision.io":
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)  # makes its import fail
    yield
    assert calls


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision are deprecated")
@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_other_way(tmp_path: Path, workers: int, device: str) -> None:
    images, own = files(tmp_path), {"erase_prob": 0.0}
    unscaled = Preprocessing(size=(32, 32), mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    there = batches(images, GpuTrainTransform(unscaled, **LIGHT | own), workers, torch.device(device))
    here = batches(images, TrainTransform(unscaled, **LIGHT | own), workers)
    for one, other in zip(there, here, strict=True):
        difference = (one.images - other.images).abs()
        assert difference.max() <= (2 if device == "cpu" else 8)  # nvjpeg computes the IDCT in another way
        assert difference.mean() < 1


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision are deprecated")
@pytest.mark.usefixtures("_library")
def test_what_cannot_be_decoded_is_named_and_the_others_of_its_batch_are_not_lost() -> None:
    picture = photograph(64, 64)
    good = encoded(picture)
    odd = EncodedImage(good.data[:200] + b"\xff\xc8" + good.data[202:], "mine/odd.jpg")
    transform = GpuTrainTransform(Preprocessing(size=(32, 32)), **LIGHT)
    random.seed(0)
    made = transform.stack([transform(good), transform(good)])
    assert isinstance(made, EncodedBatch)
    decoded = made.to(CPU)
    bad = transform.stack([transform(good), transform(good)._replace(image=odd)])
    with pytest.raises(BrokenImageError, match=r"^mine/odd\.jpg: cannot be decoded \("):
        bad.to(CPU)
    assert decoded.shape == (2, 32, 32, 3)
    assert decoded.dtype == torch.uint8


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ({"rand_augment": "rand-m9"}, "augment.rand_augment=rand-m9"),
        ({"color_jitter": 0.4}, "augment.color_jitter=0.4"),
        ({"three_augment": True}, "augment.three_augment=True"),
    ],
)
def test_what_workers_do_to_pixels_is_refused(option: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=rf"^data\.decode=gpu: cannot be combined with {line}, which needs decoded"):
        GpuTrainTransform(Preprocessing(size=(32, 32)), **LIGHT | option)


def test_without_a_gpu_it_is_refused() -> None:
    with pytest.raises(InputError, match=r"^data\.decode=gpu: needs a CUDA GPU, and this run is on the cpu; set data"):
        require_decoding("gpu", CPU)


def test_what_cannot_be_decoded_here_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("nvjpeg is missing\nin frame 3")

    monkeypatch.setattr("data.gpu_decoding.decode", refuse)
    with pytest.raises(InputError, match=r"^data\.decode=gpu: JPEGs cannot be decoded here \(nvjpeg is missing\);"):
        require_decoding("gpu", torch.device("cuda"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_run_says_so_at_once(command: Callable[..., Result], tmp_path: Path) -> None:
    result = command("train.py", *TINY, "data.decode=gpu", "augment=light", f"run_dir={tmp_path}/run")
    assert (result.status, result.stderr.splitlines()[-1]) == (
        2,
        "error: data.decode=gpu: needs a CUDA GPU, and this run is on the cpu; set data.decode=cpu",
    )
    assert not (tmp_path / "run").exists()
