"""Checkpoints that earlier commits wrote are evaluated and continued, or the line says which commit does so.

tests/files/checkpoint_version_N.pt are last.pt of one epoch on the digits at 16 pixels, with a tiny model: version 1 by
commit 755edd0, version 2 by 5c6a715, version 3 without a checksum by 74e6eaa.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import xcit
from train import TABLES
from xcit.config import TrainConfig
from xcit.config.composition import continued, read_config
from xcit.storage import read_tensors

from .conftest import ROOT, Result
from .test_recipes import composed

Command = Callable[..., Result]

# What these runs measured at 16 pixels.
LOSSES = {"raw": 2.287812254163954, "ema": 2.3030785878499347}


def run_with(version: int, folder: Path) -> Path:
    last = folder / "checkpoints" / "last.pt"
    last.parent.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "files" / f"checkpoint_version_{version}.pt", last)
    return folder


@pytest.mark.parametrize("version", [2, 3])
def test_an_older_checkpoint_is_evaluated_and_continued(command: Command, tmp_path: Path, version: int) -> None:
    run_with(version, tmp_path / "run")
    result = command("eval.py", "checkpoint=run", "run_dir=eval", "resolutions=[16]")
    assert result.status == 0, result.stderr
    rows = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert {row["weights"]: row["loss"] for row in rows} == pytest.approx(LOSSES, rel=1e-5)
    result = command("train.py", "resume=run", "train.epochs=2", "resolutions=[16]")
    assert result.status == 0, result.stderr
    assert "resuming run/checkpoints/last.pt after epoch 1; changed since: " in result.stderr
    last = read_tensors(tmp_path / "run" / "checkpoints" / "last.pt")
    assert (last["epoch"], last["format"]) == (2, "xcit training state, version 3")


def test_version_1_names_the_commit_that_reads_it(command: Command, tmp_path: Path) -> None:
    run_with(1, tmp_path / "run")
    line = "is a checkpoint of version 1; commit 755edd0 of this repository evaluates and resumes it"
    for arguments in (("eval.py", "checkpoint=run", "run_dir=eval"), ("train.py", "resume=run")):
        result = command(*arguments)
        assert result.status == 2
        assert f"run/checkpoints/last.pt: {line}" in result.stderr
    model = xcit.create_model("xcit_n12", patch_size=8, dim=16, heads=1, depth=1, class_depth=1, num_classes=10)
    xcit.load_weights(model, str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"format": "xcit training state, version 99"}, "not a checkpoint that this version reads (its format is"),
        ({"identity": {}}, "not a complete checkpoint of a run (it lacks identity.config, identity.classes)"),
        ({"optimizer": None, "step": None}, "not a complete checkpoint of a run"),
    ],
)
def test_a_checkpoint_of_another_making_is_refused_in_one_line(
    command: Command, tmp_path: Path, change: dict[str, object], line: str
) -> None:
    last = run_with(3, tmp_path / "run") / "checkpoints" / "last.pt"
    content = {**torch.load(last, weights_only=True), **change}
    torch.save({key: value for key, value in content.items() if value is not None}, last)
    for arguments in (("eval.py", "checkpoint=run", "run_dir=eval"), ("train.py", "resume=run")):
        result = command(*arguments)
        assert result.status == 2, result.stderr
        assert line in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_run_on_a_folder_keeps_its_division() -> None:
    """An older configuration does not say how images were held out: by the names of their files."""
    new = composed("data=folder", "data.root=photos").model_dump(serialize_as_any=True)
    before = {**new, "data": dict(new["data"])}
    assert before["data"].pop("split_by") == "stratified", "a new run holds out the share of each class"
    choices = {"data": "folder"}
    for typed, kept in (([], "name"), (["data", "data.root"], "name"), (["data.split_by"], "stratified")):
        resumed, _ = continued(before, choices, OmegaConf.create(new), choices, typed)
        assert read_config(TrainConfig, resumed, TABLES).data.options["split_by"] == kept
