"""A validation of DINO measures the teacher, and a collapse is told."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from xcit.engine.task import Position, Target
from xcit.evaluation.collapse import rankme
from xcit.evaluation.knn import leave_one_out_knn
from xcit.tasks.dino import Dino
from xcit.tasks.dino_validation import signs_of_collapse

from ..engine.toy import target_of
from .small_dino import task


def measure(dino: Dino, images: Tensor, labels: Tensor | None) -> dict[str, float]:
    evaluator = dino.eval().evaluator()
    with torch.inference_mode():
        for rows in torch.arange(len(images)).split(8):
            chosen = None if labels is None else labels[rows]
            evaluator.update(SimpleNamespace(images=images[rows], labels=chosen))
    return evaluator.compute()


def test_a_validation_measures_the_teacher() -> None:
    dino = task()
    images, labels = torch.randn(20, 3, 32, 32), torch.arange(20) % 3
    with torch.no_grad():
        features = dino.eval().teacher.backbone(images)
        p = (dino.teacher.head(features) / 0.04).softmax(dim=-1)
    found = measure(dino, images, labels)
    assert found["teacher_entropy"] == pytest.approx(-(p * p.log()).sum(dim=-1).mean().item(), rel=1e-4)
    mean = p.mean(dim=0)
    assert found["batch_entropy"] == pytest.approx(-(mean * mean.log()).sum().item(), rel=1e-4)
    assert found["knn_val_top1"] == pytest.approx(leave_one_out_knn(features, labels, 20))
    assert found["rankme"] == pytest.approx(rankme(features).item(), rel=1e-4)
    assert found["images"] == 20


def test_without_labels_the_headline_is_the_effective_rank() -> None:
    found = measure(task(), torch.randn(20, 3, 32, 32), None)
    assert "knn_val_top1" not in found and found["rankme"] > 1
    assert Dino.headline_for(Target("none")) == "rankme"
    assert Dino.headline_for(target_of(3)) == "knn_val_top1"


def test_simdino_has_no_prototypes_to_measure() -> None:
    assert "teacher_entropy" not in measure(task(loss="simdino"), torch.randn(20, 3, 32, 32), None)


HEALTHY = {"teacher_entropy": 2.0, "batch_entropy": 6.0, "rankme": 20.0, "feature_std": 0.5, "images": 360}
LATE = Position(200, 400, 4)


@pytest.mark.parametrize(
    ("changes", "sign"),
    [
        (
            {"teacher_entropy": 6.9, "batch_entropy": 6.92},
            "the teacher's output hardly depends on the image (mean entro",
        ),
        ({"teacher_entropy": 0.01, "batch_entropy": 0.02}, "the teacher's output hardly depends on the image"),
        ({"rankme": 1.2}, "the features have an effective rank of 1.2"),
        ({"feature_std": 0.01}, "the features of all images are alike"),
    ],
)
def test_a_collapse_is_told_with_its_sign(changes: dict[str, float], sign: str) -> None:
    assert signs_of_collapse(HEALTHY, LATE, 1024) == []
    (line,) = signs_of_collapse(HEALTHY | changes, LATE, 1024)
    assert line.startswith(sign)
    assert signs_of_collapse(HEALTHY | changes, Position(4, 400, 4), 1024) == [], "at the start all outputs are alike"


def test_remedies_are_those_that_are_not_set() -> None:
    bad = HEALTHY | {"rankme": 1.1}
    (line,) = task().advise(bad, LATE)
    assert line.startswith(
        "collapse: the features have an effective rank of 1.1; what usually helps: task.centering=sink"
    )
    assert "task.teacher_temperature=0.04" in line and "task.centering=center" not in line
    (line,) = task(centering="none", teacher_temperature=0.04, koleo=0.1).advise(bad, LATE)
    assert "task.centering=center" in line and "temperature" not in line and "koleo" not in line
    without_outputs = {name: value for name, value in bad.items() if "entropy" not in name}
    (line,) = task(loss="simdino").advise(without_outputs, LATE)
    assert "coding_rate" in line and "centering" not in line and "simdino" not in line
