"""eval.py evaluates a file of a published detector or segmenter, and train.py starts from its backbone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import eval as evaluation
import xcit
from xcit.class_names import ADE20K
from xcit.preprocessing import Preprocessing
from xcit.storage import read_tensors

from ..conftest import Result
from ..data.small_ade import write_small_ade
from ..data.small_coco import CATEGORIES, write_small_coco
from ..test_evaluating import composed
from .authors_dense import authors_content, detector, segmenter

Command = Callable[..., Result]
NAME = "maskrcnn_xcit_tiny_12_p16"
SMALL = ("model.depth=3", "model.dim=32", "model.heads=2")
QUICK = ("resolutions=[96]", "data.workers=0", "run_dir=found", "task.channels=16")


def results(folder: Path) -> list[dict]:
    return json.loads((folder / "results.json").read_text())


def test_a_files_name_says_its_model_and_its_keys_say_its_task(command: Command, tmp_path: Path) -> None:
    write_small_coco(tmp_path / "coco", images=3, size=96)
    torch.save(authors_content(detector(classes=tuple(CATEGORIES))), tmp_path / f"{NAME}.pth")
    arguments = (*SMALL, *QUICK, "data=coco", "data.root=coco")
    result = command("eval.py", f"checkpoint={NAME}.pth", *arguments, "task.anchor_scale=4", "task.score_threshold=0")
    assert result.status == 0, result.stderr
    assert "model       xcit_t12" in result.stderr + result.stdout
    (row,) = results(tmp_path / "found")
    assert (row["weights"], row["images"], row["eval_set"]) == ("raw", 3, "coco")
    assert 0 <= row["box_map"] <= 100


def test_another_files_model_must_be_given(command: Command, tmp_path: Path) -> None:
    write_small_ade(tmp_path / "ade", images=1, validation=2)
    torch.save(authors_content(segmenter("semantic_fpn", classes=ADE20K)), tmp_path / "mine.pth")
    arguments = ("checkpoint=mine.pth", *QUICK, "data=ade20k", "data.root=ade")
    result = command("eval.py", *arguments)
    assert result.status == 2
    assert result.stderr == "error: model: must be given, because mine.pth does not say which one in conf/model\n"
    result = command("eval.py", *arguments, "model=xcit_n12", *SMALL)
    assert result.status == 0, result.stderr
    (row,) = results(tmp_path / "found")
    assert 0 <= row["miou"] <= 100 and row["images"] == 2


def test_other_classes_than_the_files_are_named(command: Command, tmp_path: Path) -> None:
    write_small_coco(tmp_path / "coco", images=1, size=96)
    torch.save(authors_content(detector(classes=("cat", "dog"))), tmp_path / f"{NAME}.pth")
    result = command("eval.py", f"checkpoint={NAME}.pth", *SMALL, *QUICK, "data=coco", "data.root=coco")
    assert result.status == 2 and len(result.stderr.splitlines()) == 1
    assert "category circle is not a class" in result.stderr and "known classes: cat, dog" in result.stderr


@pytest.mark.parametrize(
    ("name", "data", "task", "model", "size"),
    [
        ("maskrcnn_xcit_medium_24_p8", "coco", {"name": "detect"}, ("xcit_m24", 8), 800),
        ("upernet_xcit_small_12_p16", "ade20k", {"name": "segment", "head": "upernet"}, ("xcit_s12", 16), 512),
    ],
)
def test_a_published_name_is_evaluated_at_its_size(name: str, data: str, task: dict, model: tuple, size: int) -> None:
    raw = composed("eval", f"checkpoint={name}", f"data={data}", "data.root=/images")
    whole = evaluation.completed(raw, None, Path(f"{name}.pth"), task)
    assert (whole.model.name, whole.model.options["patch_size"]) == model
    assert whole.task.name == task["name"] and whole.resolutions == [size]
    assert whole.task.options.get("head") == task.get("head")


def test_training_starts_from_the_backbone_of_a_run_of_detection(command: Command, tmp_path: Path) -> None:
    """Its class attention is new, and its images are of the new task's form."""
    write_small_coco(tmp_path / "coco", images=3, size=96)
    small = ("model=xcit_n12", "model.patch_size=16", *SMALL, "data.workers=0", "train.precision=fp32")
    quick = ("train.updates=1", "train.global_batch_size=2", "data.image_size=96", "resolutions=[96]")
    heads = ("task.channels=16", "task.proposals=20")
    first = command("train.py", *small, *quick, *heads, "data=coco", "data.root=coco", "pretrained=null", "run_dir=one")
    assert first.status == 0, first.stderr
    again = command("train.py", *small, *quick, *heads, "data=coco", "data.root=coco", "pretrained=one", "run_dir=two")
    assert again.status == 0, again.stderr
    assert "has no cls_attn_blocks, cls_token, norm, which detection and segmentation do not use" in again.stderr

    options = {"depth": 3, "dim": 32, "heads": 2, "num_classes": 4}
    with pytest.warns(xcit.Notice) as told:
        model = xcit.create_model("xcit_n12", pretrained=tmp_path / "one", **options)
    assert ["has no classifier" in str(one.message) for one in told] == [True, False]
    state = read_tensors(tmp_path / "one/checkpoints/last.pt")["task"]
    assert torch.equal(model.blocks[0].gamma1, state["model.model.blocks.0.gamma1"])
    preprocessing = Preprocessing.of_model(model)
    assert (preprocessing.resize, preprocessing.size) == ("crop", (224, 224))
