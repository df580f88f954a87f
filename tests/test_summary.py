"""What a command says at its start is aligned, and counts right."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import nn

import xcit
from xcit import summary
from xcit.engine import distributed
from xcit.engine.length import Length
from xcit.preprocessing import Preprocessing

CPU = torch.device("cpu")


def test_lines_are_aligned_and_hold_no_password(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = [("data", "3 images from https://me:secret@host/x"), ("evaluation", "at 32 pixels")]
    summary.say(facts, ["a note"])
    assert capsys.readouterr() == (
        "",
        "data        3 images from https://***@host/x\nevaluation  at 32 pixels\nnote: a note\n",
    )
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    summary.say(facts, ["a note"])
    assert capsys.readouterr() == ("", "")


def test_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "cpu_name", lambda: "Some CPU")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert summary.device(CPU, "fp32") == ("device", "CPU (Some CPU), 1 process of 1 thread, fp32")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert summary.device(CPU, "bf16")[1] == "CPU (Some CPU), 2 processes of 4 threads each, bf16"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    assert summary.device(torch.device("cuda", 0), "bf16")[1] == "2 × Some GPU, 2 processes, bf16"


def test_the_model_and_what_of_it_is_trained() -> None:
    model = xcit.create_model("xcit_n12", num_classes=10, depth=1, class_depth=1)
    total = sum(p.numel() for p in model.parameters()) / 1e6
    text = f"n12, {total:.2f} M parameters, patches of 16 pixels, images of 128, 160 and 224 pixels"
    assert summary.model("n12", model, 16, Preprocessing(), [128, 160, 224]) == ("model", text)
    layers = nn.Sequential(nn.Linear(1_000, 100, bias=False), nn.Linear(100, 200, bias=False))
    layers[0].requires_grad_(False)
    text = "two, 0.12 M parameters, 0.02 M of them trained, images of 32 pixels"
    assert summary.model("two", layers, 1, Preprocessing(), [32])[1] == text
    oblong = summary.model("two", layers, 1, Preprocessing(size=(48, 64)), [48, 96])[1]
    assert oblong.endswith(", images of 48 × 64 and 96 × 128 pixels (height × width)")


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (
            Length(epochs=16),
            "16 epochs of 22 updates, 64 images per update, learning rate 0.002 (optim.lr=",
        ),
        (Length(epochs=1), "1 epoch of 22 updates, 64 "),
        (Length(updates=33), "33 updates (an epoch has 22), 64 "),
        (Length(updates=1), "1 update (an epoch has 22), 64 "),
    ],
)
def test_the_training(length: Length, text: str) -> None:
    assert summary.training(length, 22, 64, 0.016)[1].startswith(text)


def test_the_images_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 8)
    text = summary.training(Length(epochs=400), 1_251, 1_024, 5e-4)[1]
    assert text.startswith("400 epochs of 1,251 updates, 1,024 images per update (8 processes × 128), ")
    assert "learning rate 0.001 (" in text


def test_the_evaluation_and_the_start() -> None:
    assert summary.evaluation([24, 32, 40], 1.0) == ("evaluation", "at 24, 32 and 40 pixels")
    assert summary.evaluation([32], 0.875)[1] == "at 32 pixels, crop ratio 0.875"
    assert summary.start(None, None, None) == ("start", "from scratch")
    assert summary.start("fb_dist_in1k", None, None)[1] == "from pretrained=fb_dist_in1k"
    assert summary.start("fb_dist_in1k", "other", Path("run/last.pt"))[1] == "resumed from run/last.pt"


def test_changes_are_listed_without_what_names_the_run() -> None:
    class Config(BaseModel):
        optim: dict[str, Any]
        run_dir: str
        resume: str = "none"
        seed: int

    before = Config(optim={"lr": 1, "name": "adamw"}, run_dir="a", seed=0)
    now = Config(optim={"lr": 2, "name": "adamw"}, run_dir="b", resume="a", seed=1)
    assert summary.changes(before, now) == ["optim.lr 1 → 2", "seed 0 → 1"]
