"""Runs of detection and segmentation from the command line: what they write, exact resume, and several processes."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import xcit
from xcit.checkpoint import LAST
from xcit.errors import Notice
from xcit.storage import read_tensors

from .conftest import Result, call_here, launch, launch_forks
from .data.small_ade import write_small_ade
from .data.small_coco import write_small_coco
from .test_dino_runs import untimed
from .test_resuming import AT_STEP_14

Command = Callable[..., Result]
KILL = AT_STEP_14.replace("== 13", "== 2").format("signal.raise_signal(signal.SIGKILL)")

# Four updates in two epochs, at 64 pixels, with three layers.
TINY = (
    "model=xcit_n12_p8",
    "model.depth=3",
    "pretrained=null",
    "data.image_size=64",
    "data.workers=0",
    "optim.lr=0.05",
    "optim.warmup_updates=1",
    "train.global_batch_size=4",
    "train.precision=fp32",
    "train.log_every=1",
    "train.save_every=1",
    "resolutions=[64]",
)
DETECT = (
    "data=coco",
    "train.epochs=2",
    "optim.milestones=[1]",
    "task.channels=16",
    "task.proposals=20",
    "task.anchor_scale=4",
    # All images of a batch have one size, so that padding is the same for any number of processes.
    "augment.crop_prob=0",
    "augment.shorter_sides=[800]",
)
SEGMENT = ("data=ade20k", "train.updates=4", "task.channels=16", "task.dropout=0")


def write_landscapes(folder: Path) -> None:
    """A set in COCO's format with eight training images, all of one size."""
    write_small_coco(folder, images=12)
    for split in ("train", "val"):
        path = folder / f"annotations/instances_{split}2017.json"
        content = json.loads(path.read_text())
        kept = [image["id"] for image in content["images"] if image["width"] > image["height"]]
        content["images"] = [image for image in content["images"] if image["id"] in kept]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        path.write_text(json.dumps(content))


@pytest.fixture(scope="module", params=["detect", "segment"])
def arguments(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sequence[str]:
    """The command of a run of each task."""
    folder = tmp_path_factory.mktemp("data")
    if request.param == "detect":
        write_landscapes(folder)
        return ("train.py", *DETECT, *TINY, f"data.root={folder}")
    write_small_ade(folder, images=8, validation=3)
    return ("train.py", *SEGMENT, *TINY, f"data.root={folder}")


@pytest.fixture(scope="module")
def trained(one_thread: None, arguments: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    result = call_here(*arguments, f"run_dir={folder}", cwd=folder.parent)
    assert result.status == 0, result.stderr
    return folder


def headline_of(folder: Path) -> str:
    return read_tensors(folder / "checkpoints/last.pt")["headline"]


def rows(path: Path) -> list[dict[str, Any]]:
    return json.loads((path / "results.json").read_text())


def test_a_run_leaves_metrics_a_table_of_the_classes_and_pictures(trained: Path) -> None:
    headline = headline_of(trained)
    train, val = ([row for row in untimed(trained) if row["split"] == split] for split in ("train", "val"))
    assert len(train) == 4 and len(val) == 2
    (result,) = rows(trained)
    assert result["resolution"] == 64 and headline in result and headline in val[0]
    assert (trained / f"{headline}_vs_resolution.png").is_file() and (trained / "curves.png").is_file()
    folder = trained / "predictions/64_raw"
    table = list(csv.DictReader((folder / "per_class.csv").open()))
    names = json.loads((trained / "classes.json").read_text())
    assert [row["class"] for row in table] == names
    assert {"miou": "iou", "box_map": "box_map"}[headline] in table[0]
    pictures = sorted(folder.glob("*.jpg"))
    assert len(pictures) == min(8, result["images"])
    assert all(min(Image.open(picture).size) >= 64 for picture in pictures)


def test_a_killed_run_goes_on_exactly(
    arguments: Sequence[str], trained: Path, command: Command, tmp_path: Path
) -> None:
    """Killed within an epoch. Every row and weight is the same to the last digit."""
    typed = (*arguments, "run_dir=run", "resume=auto")
    assert launch(*typed, cwd=tmp_path, before=KILL).status == -9
    result = command(*typed)
    assert result.status == 0, result.stderr
    assert "resuming run/checkpoints/last.pt" in result.stderr
    assert untimed(tmp_path / "run") == untimed(trained)
    ours, theirs = (read_tensors(path / "checkpoints/last.pt")["task"] for path in (tmp_path / "run", trained))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_two_processes_learn_and_measure_what_one_does(arguments: Sequence[str], trained: Path, tmp_path: Path) -> None:
    result = launch_forks(*arguments, "run_dir=run", cwd=tmp_path)
    assert result.status == 0, result.stderr
    for one, two in zip(untimed(trained), untimed(tmp_path / "run"), strict=True):
        assert one.keys() == two.keys()
        # In the validation, rounding may move a detection over a threshold.
        near = {"rel": 2e-3, "abs": 1e-4} if one["split"] == "train" else {"rel": 0.02, "abs": 0.5}
        numbers = [{key: value for key, value in row.items() if isinstance(value, float)} for row in (two, one)]
        assert numbers[0] == pytest.approx(numbers[1], **near, nan_ok=True), one["step"]
    # AdamW's means of the gradients: they show a wrong factor, which its updates hide.
    ours, theirs = (
        {name: state["exp_avg"] for name, state in read_tensors(folder / LAST)["optimizer"]["by_parameter"].items()}
        for folder in (tmp_path / "run", trained)
    )
    largest = max(mean.norm() for mean in theirs.values())
    for name, mean in theirs.items():
        assert (ours[name] - mean).norm() <= 0.02 * mean.norm() + 1e-4 * largest, name


def test_a_run_is_evaluated_as_its_validation_says(
    arguments: Sequence[str], trained: Path, command: Command, tmp_path: Path
) -> None:
    result = command("eval.py", f"checkpoint={trained}", "run_dir=out", "batch_size=2")
    assert result.status == 0, result.stderr
    headline = headline_of(trained)
    (before,), (after,) = rows(trained), rows(tmp_path / "out")
    # The folded model rounds differently.
    assert after[headline] == pytest.approx(before[headline], abs=0.5)
    assert (tmp_path / "out/predictions/64_raw/per_class.csv").is_file()
    assert "inference" not in after


def test_the_backbone_of_a_run_loads_alone_but_has_no_features_of_whole_images(
    trained: Path, command: Command, tmp_path: Path
) -> None:
    with pytest.warns(
        Notice, match=r"last\.pt: has no cls_attn_blocks, cls_token, norm, which detection and segm"
    ) as told:
        model, _, classes = xcit.load(trained)
    assert {notice.filename for notice in told} == {__file__}, "the notice names the line that loads the run"
    saved, own = read_tensors(trained / LAST)["task"], model.state_dict()
    of_layers = [name for name in own if name.startswith(("blocks.", "patch_embed."))]
    assert of_layers and all(torch.equal(own[name], saved[f"model.model.{name}"]) for name in of_layers)
    assert (model.num_classes, classes) == (0, None)

    result = command("eval.py", f"checkpoint={trained}", "evaluate=knn", "data=digits", "run_dir=out")
    assert result.status == 2 and not (tmp_path / "out").exists()
    line = result.stderr.splitlines()[-1]
    assert "has no cls_attn_blocks, cls_token, norm" in line and f"pretrained={trained} trains a classifier" in line


def test_results_say_how_images_were_segmented(
    arguments: Sequence[str], trained: Path, command: Command, tmp_path: Path
) -> None:
    if "data=ade20k" not in arguments:
        pytest.skip("a detector has one way")
    options = ("task.inference=slide", "task.window=48", "task.stride=32", "task.scales=[0.5,1]", "task.flip=true")
    result = command("eval.py", f"checkpoint={trained}", "run_dir=out", *options)
    note = "slide, window 48, stride 32, scales 0.5 1, flip"
    assert result.status == 0, result.stderr
    assert note in " ".join(result.stdout.split())
    assert rows(tmp_path / "out")[0]["inference"] == note
    assert next(csv.DictReader((tmp_path / "out/results.csv").open()))["inference"] == note


def test_wrong_options_of_an_evaluation_are_refused_before_its_folder_is_made(
    arguments: Sequence[str], trained: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, line = ["task.inference=slide", "task.stride=600"], "task.stride=600: must be at most task.window=512"
    if "data=coco" in arguments:
        monkeypatch.setattr("xcit.evaluation.detection.find_spec", lambda name: None)
        options, line = [], "task=detect: needs faster-coco-eval, which is not installed"
    result = command("eval.py", f"checkpoint={trained}", "run_dir=out", *options)
    assert result.status == 2 and line in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (
            ("task=detect", "data=digits"),
            "task=detect: learns from targets of kind boxes; those of data=digits are class",
        ),
        # The data set's recipe has the augmentation of another task, and the data have not been read yet.
        (
            ("task=detect", "data=masks", "data.root=.", "data.classes=3"),
            "task=detect: learns from targets of kind boxes; those of data=masks are mask",
        ),
        (
            ("task=segment", "data=coco", "data.root=small"),
            "task=segment: learns from targets of kind mask; those of data=coco are boxes",
        ),
        (
            ("task=classify", "data=ade20k", "data.root=small"),
            "task=classify: learns from targets of kind class; those of data=ade20k are mask",
        ),
        (
            ("task=detect", "data=flowers", "data.root=small"),
            "task=detect: learns from targets of kind boxes; those of data=flowers are class",
        ),
        (
            ("task=segment", "data=cifar10", "data.root=small"),
            "task=segment: learns from targets of kind mask; those of data=cifar10 are class",
        ),
        (
            ("task=dino", "data=flowers", "data.root=small"),
            "ratio, solarize; augment=multi_crop has them",
        ),
        (("data=coco", "data.root=missing"), "missing: no such folder"),
        (
            ("data=coco", "data.root=small", "model=timm", "model.name=resnet18"),
            "model: must have feature maps of one stride",
        ),
        (("data=coco", "data.root=small", "model.depth=2"), "depth=2: must be at least 3 layers"),
        (
            ("data=masks", "data.root=.", "data.classes=3", "optim.schedule=step"),
            "optim.milestones=[]: must hold epochs",
        ),
        (
            ("data=masks", "data.root=.", "data.classes=3", "task.head=upernet", "train.global_batch_size=1"),
            "train.global_batch_size: task.head=upernet needs at least 2 images in each pass",
        ),
    ],
)
def test_what_cannot_be_is_one_line(command: Command, tmp_path: Path, wrong: tuple[str, ...], line: str) -> None:
    write_small_coco(tmp_path / "small", images=4)
    result = command("train.py", *wrong, "pretrained=null", "run_dir=run")
    assert result.status == 2, result.stderr
    assert line in result.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()
