"""A real teacher, of timm or of ours, loads the given weights, and weights that do not fit are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import xcit
from xcit.preprocessing import Preprocessing
from xcit.tasks.teacher import Teacher

CPU = torch.device("cpu")


def a_teacher(weights: Path, name: str = "test_resnet", **options: Any) -> Teacher:
    arguments = {"weights": str(weights), "image_size": None, "student": Preprocessing(), "device": CPU}
    return Teacher(name, 3, **arguments | options)


def test_a_teacher_loads_the_given_weights(tmp_path: Path) -> None:
    source = xcit.create_model("timm", name="test_resnet", num_classes=3).eval()
    torch.save({"model": source.state_dict()}, tmp_path / "teacher.pth")
    ours = a_teacher(tmp_path / "teacher.pth")
    images = torch.randn(2, 3, 160, 160)
    assert ours.size == (160, 160), "the size of test_resnet"
    torch.testing.assert_close(ours(ours_to_student(images, ours)), source(images), rtol=1e-4, atol=1e-4)


def ours_to_student(images: Tensor, of: Teacher) -> Tensor:
    """Converts images that are normalized for this teacher to the student's normalization."""
    mine, student = of.preprocessing, Preprocessing()
    mean, std, student_mean, student_std = (
        torch.tensor(values)[:, None, None] for values in (mine.mean, mine.std, student.mean, student.std)
    )
    return (images * std + mean - student_mean) / student_std


@pytest.mark.parametrize("classes", [5, 0])
def test_weights_for_other_classes_are_refused_instead_of_a_new_classifier(classes: int, tmp_path: Path) -> None:
    source = xcit.create_model("timm", name="test_resnet", num_classes=classes)
    torch.save(source.state_dict(), tmp_path / "other.pth")
    with pytest.raises(xcit.InputError, match=r"task\.teacher_weights=.*other\.pth: ") as caught:
        a_teacher(tmp_path / "other.pth")
    assert "fc.weight" in str(caught.value)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    torch.save(xcit.create_model("timm", name="test_vit", num_classes=3).state_dict(), tmp_path / "vit.pth")
    with pytest.raises(xcit.InputError, match=r"task\.teacher_weights=.*vit\.pth: belongs to another architecture"):
        a_teacher(tmp_path / "vit.pth")


def test_an_xcit_can_be_the_teacher(tmp_path: Path) -> None:
    source = xcit.create_model("xcit_n12", num_classes=3).eval()
    torch.save(source.state_dict(), tmp_path / "xcit.pth")
    ours = a_teacher(tmp_path / "xcit.pth", "xcit_nano_12_p16_224", image_size=32)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), source(images), rtol=1e-4, atol=1e-4)
