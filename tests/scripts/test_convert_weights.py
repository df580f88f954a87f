"""scripts/convert_weights.py converts any format into any other and back, bit for bit."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import xcit
from scripts.parity import make_weights_tell
from xcit.storage import read_tensors, write_tensors
from xcit.weights.dense import backbone_alone
from xcit.weights.formats import to_authors_names

from ..conftest import TINY, Result
from ..models.examples import same
from ..weights.authors_dense import authors_content, detector

Command = Callable[..., Result]
SCRIPT = "scripts/convert_weights.py"


@pytest.fixture
def authors(tmp_path: Path) -> Path:
    """A file in the authors' format, of a real architecture."""
    model = xcit.create_model("xcit_n12")
    make_weights_tell(model)
    path = tmp_path / "xcit_nano_12_p16_224.pth"
    write_tensors(path, {"model": to_authors_names(model.state_dict())})
    return path


@pytest.mark.parametrize("way", [("timm",), ("safetensors",), ("hub",), ("safetensors", "hub", "timm")])
def test_a_round_trip_changes_no_bit(command: Command, authors: Path, way: tuple[str, ...]) -> None:
    suffixes = {"timm": "timm.pth", "safetensors": "safetensors", "hub": "hub"}
    stations = [authors.name, *(f"{number}.{suffixes[to]}" for number, to in enumerate(way)), "back.pth"]
    for (source, target), to in zip(pairwise(stations), (*way, "authors"), strict=True):
        told = ["--model", '{"name": "xcit_n12"}'] if to == "hub" else []
        result = command(SCRIPT, source, target, "--to", to, *told)
        assert result.status == 0, result.stderr
        assert result.stdout.startswith(f"{target}: ")
    before, after = (read_tensors(authors.parent / name)["model"] for name in (authors.name, "back.pth"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


def test_a_run_becomes_a_folder_for_the_hub_with_its_recipe_and_results(command: Command, tmp_path: Path) -> None:
    torch.save(xcit.create_model("xcit_n12", patch_size=8, lpi=False).state_dict(), tmp_path / "planted.pth")
    planted = f"pretrained={tmp_path / 'planted.pth'}"
    assert command("train.py", *TINY, "model.lpi=false", planted, "crop_ratio=0.9", "run_dir=run").status == 0
    result = command(SCRIPT, "run", "mine", "--to", "hub", "--weights", "raw")
    assert result.status == 0, result.stderr
    model = xcit.XCiT.from_pretrained(tmp_path / "mine")
    state = read_tensors(tmp_path / "run/checkpoints/last.pt")["task"]
    assert all(torch.equal(value, state[f"model.{key}"]) for key, value in model.state_dict().items())
    assert (model.patch_size, model.num_classes, model.pretrained_cfg["input_size"]) == (8, 10, (3, 16, 16))
    loaded = xcit.load(tmp_path / "mine")
    assert (loaded.preprocessing.crop_ratio, loaded.classes) == (0.9, [str(digit) for digit in range(10)])
    card = (tmp_path / "mine/README.md").read_text()
    published = card + (tmp_path / "mine/config.json").read_text()
    assert "planted" not in published and str(tmp_path) not in published and "last.pt" not in published
    rows = [r for r in json.loads((tmp_path / "run/results.json").read_text()) if r["weights"] == "raw"]
    assert "# xcit_n12" in card and "| lpi | False |" in card and "global_batch_size: 128" in card
    assert all(f"| raw | digits | {row['resolution']} | 0.9 | {row['top1']:.4g} |" in card for row in rows)


def test_the_keys_of_a_detector_are_listed_beside_ours(command: Command, tmp_path: Path) -> None:
    content = authors_content(detector())
    content["state_dict"]["backbone.cls_token"] = torch.zeros(1)
    torch.save(content, tmp_path / "theirs.pth")
    result = command(SCRIPT, "theirs.pth", "keys.csv", "--to", "keys")
    assert result.status == 0, result.stderr
    assert result.stdout == f"keys.csv: {len(content['state_dict'])} keys, 1 of them without a place in ours\n"
    lines = (tmp_path / "keys.csv").read_text().splitlines()
    assert lines[0] == "authors,ours" and len(lines) == 1 + len(content["state_dict"])
    assert {"backbone.cls_token,", "rpn_head.rpn_cls.bias,heads.rpn.head.cls_logits.bias"} <= set(lines)
    assert command(SCRIPT, "theirs.pth", "backbone.pth", "--to", "timm").status == 0
    assert same(read_tensors(tmp_path / "backbone.pth"), backbone_alone(content, "").state("raw"))


def test_bad_arguments_end_with_one_line(command: Command, authors: Path, tmp_path: Path) -> None:
    (tmp_path / "there.pth").write_text("precious")
    torch.save({}, tmp_path / "empty.pth")
    torch.save(torch.load(authors)["model"], tmp_path / "unnamed.pth")
    for arguments, message in (
        (("nowhere.pth", "x.pth", "--to", "timm"), "nowhere.pth: no such file"),
        ((authors.name, "there.pth", "--to", "timm"), "there.pth: exists already"),
        ((authors.name, "no/where.pth", "--to", "timm"), "no/where.pth: its folder does not exist"),
        (
            (authors.name, "x.pth", "--to", "timm", "--weights", "ema"),
            f"weights=ema: {authors.name} has only raw",
        ),
        ((authors.name, "x", "--to", "safetensors"), "x: must end in .safetensors"),
        (("empty.pth", "x.pth", "--to", "timm"), "empty.pth: holds no state dict"),
        (("unnamed.pth", "x", "--to", "keys"), "--to keys: is for published detectors and segmenters; unnamed.pth is"),
        (("unnamed.pth", "x", "--to", "hub"), "--model: must be given for --to hub"),
        (
            ("unnamed.pth", "x", "--to", "hub", "--model", '{"name": "xcit_n12", "lpi": 3}'),
            "--model: lpi=3: must be true or false",
        ),
        (("unnamed.pth", "x", "--to", "hub", "--model", '{"name": "xcit_s12"}'), "unnamed.pth: belongs to another"),
    ):
        result = command(SCRIPT, *arguments)
        assert result.status == 2
        assert result.stderr.startswith(f"error: {message}")
    assert (tmp_path / "there.pth").read_text() == "precious"
    assert not {path.name for path in tmp_path.iterdir()} & {"x", "x.pth"}
