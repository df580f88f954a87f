"""Fast decoding trains as accurate a model as full decoding."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import xcit
from data import crops
from data.datasets.digits import Digits
from data.datasets.image_files import ImageFiles
from data.examples import Examples
from data.loader import EvalLoader, TrainLoader
from data.mixing import Mixing
from data.samplers import TrainBatches
from data.transforms import TrainTransform
from data.views.labelled_crop import CenterLabelledCrop, RandomLabelledCrop
from xcit.preprocessing import Preprocessing

CPU = torch.device("cpu")
EPOCHS = 5
LIGHT = {"hflip": 0.0, "color_jitter": 0.0, "rand_augment": None, "erase_prob": 0.0}


def as_photographs(images: Examples, folder: Path) -> ImageFiles:
    """Write the digits as JPEGs of 320 × 240, so that crops are decoded at 1/2 or 1/4 of the size."""
    folder.mkdir()
    samples = []
    for number in range(len(images)):
        image, label, _, _ = images[number]
        assert isinstance(image, Image.Image)
        path = folder / f"{number:04}.jpg"
        image.resize((320, 240), Image.Resampling.BICUBIC).save(path, quality=90)
        samples.append((str(path), label))
    return ImageFiles.from_samples(samples, images.classes)


def accuracy_and_losses(train: ImageFiles, val: ImageFiles) -> tuple[float, list[float]]:
    torch.manual_seed(0)
    model = xcit.create_model("xcit_n12", patch_size=8, num_classes=10, depth=2, class_depth=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    batches = TrainLoader(
        train,
        [
            RandomLabelledCrop(
                TrainTransform(Preprocessing(size=(32, 32)), scale=(0.6, 1.0), ratio=(0.85, 1.18), **LIGHT),
                Mixing(10, mixup=0.0, cutmix=0.0, switch_prob=0.5, label_smoothing=0.1),
            )
        ],
        TrainBatches(len(train), 64, seed=0),
        epochs=EPOCHS,
        workers=0,
        device=CPU,
    )
    losses = []
    model.train()
    for epoch in range(EPOCHS):
        for batch in batches.epoch(epoch):
            loss = F.cross_entropy(model(batch.images), batch.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    model.eval()
    right = 0
    with torch.no_grad():
        view = CenterLabelledCrop(Preprocessing(size=(32, 32)), 10)
        for batch in EvalLoader(val, view, 64, workers=0, device=CPU):
            right += int((model(batch.images).argmax(1) == batch.labels).sum())
    return 100 * right / len(val), losses


def test_a_model_gets_as_good_by_either_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = as_photographs(Digits().train(), tmp_path / "train")
    val = as_photographs(Digits().val(), tmp_path / "val")
    fast, fast_losses = accuracy_and_losses(train, val)
    monkeypatch.setattr(crops, "read_jpeg", lambda image: None)
    plain, plain_losses = accuracy_and_losses(train, val)
    assert fast_losses != plain_losses, "fast decoding was not used"
    assert fast_losses[:3] == pytest.approx(plain_losses[:3], rel=0.05)
    assert fast == pytest.approx(plain, abs=3.0)  # two seeds differ by as much
    assert fast > 85
