"""The sweep over resolutions writes rows and files in the documented format."""

import csv
import gc
import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from data.views.labelled_crop import LabelledImages
from xcit.engine.task import Details, Evaluator
from xcit.errors import Notice
from xcit.evaluation.cost import Meter
from xcit.evaluation.report import write_report
from xcit.evaluation.resolutions import Row, Subject, by_evaluator, default_resolutions, resolutions_for, sweep
from xcit.models.dry_run import dry_run
from xcit.tasks import TASKS

from ..engine.toy import target_of

COLUMNS = [
    "model",
    "checkpoint",
    "weights",
    "eval_set",
    "resolution",
    "crop_ratio",
    "top1",
    "top5",
    "loss",
    "balanced_accuracy",
    "macro_f1",
    "auroc",
    "images",
    "images_per_second",
    "peak_memory_mb",
]


class Sizer(nn.Module):
    """Predicts class 0 for small images and class 6 for large ones. Class 5 ranks second, class 1 last."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        winner = 0 if images.shape[-1] < 20 else 6
        logits = torch.tensor([3.0, 0.0, 1.0, 2.0, 2.5, 4.0, 3.5])
        logits[winner] = 9.0
        return logits.expand(len(images), -1)


def batches_at(resolution: int) -> list[LabelledImages]:
    """Returns seven images in two batches with the labels 0, 0, 0, 1 and 6, 0, 2."""
    return [
        LabelledImages(
            torch.zeros(len(labels), 3, resolution, resolution),
            nn.functional.one_hot(labels, 7).float(),
            labels,
            torch.ones(len(labels)),
        )
        for labels in (torch.tensor([0, 0, 0, 1]), torch.tensor([6, 0, 2]))
    ]


def rows_of(resolutions: list[int], task: nn.Module | None = None, folder: Path | None = None) -> list[Row]:
    task = task or TASKS["classify"](Sizer(), target_of(7))
    return sweep(
        {"raw": task, "ema": task},
        by_evaluator(batches_at, torch.device("cpu"), "fp32"),
        resolutions,
        Subject("sizer", "runs/a/checkpoints/last.pt", "seven", crop_ratio=1.0),
        device=torch.device("cpu"),
        folder=folder,
    )


class Described(Evaluator):
    """An evaluator with details."""

    def update(self, batch: LabelledImages) -> None:
        self.size = batch.images.shape[-1]

    def compute(self) -> dict[str, float]:
        return {"images": 7}

    def details(self) -> Details:
        picture = Image.new("RGB", (self.size, self.size), "red")
        return Details([{"class": "a", "iou": 50.0}, {"class": "b", "iou": math.nan}], [picture] * 2)


def test_details_are_written_for_each_resolution_and_kind_of_weights(tmp_path: Path) -> None:
    class WithDetails(TASKS["classify"]):
        def evaluator(self) -> Evaluator:
            return Described()

    rows_of([16, 32], WithDetails(Sizer(), target_of(7)), tmp_path)
    folders = sorted(path.name for path in (tmp_path / "predictions").iterdir())
    assert folders == ["16_ema", "16_raw", "32_ema", "32_raw"]
    folder = tmp_path / "predictions" / "32_ema"
    assert (folder / "per_class.csv").read_text() == "class,iou\na,50.0\nb,\n"
    assert sorted(path.name for path in folder.iterdir()) == ["1.jpg", "2.jpg", "per_class.csv"]
    assert Image.open(folder / "2.jpg").size == (32, 32)


def test_every_image_counts_equally_in_batches_of_any_size() -> None:
    rows = rows_of([16, 32])
    assert [(row["resolution"], row["weights"]) for row in rows] == [(16, "raw"), (16, "ema"), (32, "raw"), (32, "ema")]
    assert [list(row) for row in rows] == [COLUMNS] * 4
    assert rows[0]["top1"] == pytest.approx(100 * 4 / 7)
    assert rows[2]["top1"] == pytest.approx(100 * 1 / 7)
    assert rows[0]["top5"] == pytest.approx(100 * 5 / 7)
    logits = Sizer()(torch.zeros(7, 3, 16, 16))
    labels = torch.tensor([0, 0, 0, 1, 6, 0, 2])
    assert rows[0]["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)
    assert all(row["images"] == 7 and row["images_per_second"] > 0 and row["peak_memory_mb"] > 100 for row in rows)


def test_the_report_is_a_list_a_table_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of([16, 24, 32])
    write_report(tmp_path, rows, "top1", trained_at=16)
    assert json.loads((tmp_path / "results.json").read_text()) == rows
    with (tmp_path / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["top1"]) for row in table] == [row["top1"] for row in rows]
    assert list(table[0]) == COLUMNS
    with Image.open(tmp_path / "top1_vs_resolution.png") as picture:
        assert picture.width > 500
    printed = capsys.readouterr().out
    assert "16 (training)" in printed
    assert "57.14" in printed


def test_evaluation_restores_the_mode_of_the_task() -> None:
    task = TASKS["classify"](Sizer(), target_of(7)).train()
    rows_of([16], task)
    assert task.training


def test_peak_memory_is_that_of_the_code_inside_the_meter() -> None:
    gc.collect()  # frees the memory of earlier tests now, not during the measurement
    with Meter(torch.device("cpu")) as small:
        pass
    with Meter(torch.device("cpu")) as large:
        torch.ones(100_000_000)
    with Meter(torch.device("cpu")) as after:
        pass
    assert large.peak_memory_mb - small.peak_memory_mb > 350
    assert large.peak_memory_mb - after.peak_memory_mb > 350


@pytest.mark.parametrize(
    ("image_size", "patch_size", "expected"),
    [
        (224, 16, [160, 192, 224, 256, 288, 320, 384]),  # the paper's
        (224, 8, [160, 192, 224, 256, 288, 320, 384]),
        (224, 1, [160, 192, 224, 256, 288, 320, 384]),  # a model without patches
        (384, 16, [288, 320, 384, 448, 480, 544, 672]),
        (64, 8, [48, 56, 64, 72, 80, 88, 112]),
        (64, 16, [48, 64, 80, 96, 112]),
        (32, 8, [24, 32, 40, 48, 56]),
        (16, 16, [16, 32]),
    ],
)
def test_the_resolutions_follow_from_the_training_size(image_size: int, patch_size: int, expected: list[int]) -> None:
    assert default_resolutions(image_size, patch_size) == expected


@pytest.mark.parametrize("patch_size", [1, 8, 16])
def test_any_training_size_is_among_a_few_resolutions_of_whole_patches_at_a_bounded_cost(patch_size: int) -> None:
    for size in range(patch_size, 700):
        found = default_resolutions(size, patch_size)
        assert size in found and 2 <= len(found) <= 7 and found == sorted(set(found))
        assert all(other % patch_size == 0 and other >= patch_size for other in found if other != size)
        assert max(found) <= 2 * size + patch_size
        if size >= 64:
            assert sum((other / size) ** 2 for other in found) < 12, "evaluations at the training size"


def test_resolutions_that_a_model_does_not_take_are_left_out_and_told_of() -> None:
    cait = dry_run("timm", {"name": "cait_xxs24_224", "image_size": 224}, {})
    with pytest.warns(Notice, match="resolutions: the model does not take images of 160, 192, 256, 288, 320, 384 pix"):
        assert resolutions_for(cait, 224) == [224]
    for name, options in (("xcit_n12", {}), ("timm", {"name": "resnet18"})):
        assert resolutions_for(dry_run(name, options, {}), 224, 16) == default_resolutions(224)
