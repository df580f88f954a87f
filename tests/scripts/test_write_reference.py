"""Every configuration key is explained once, in the schema; conf/ and docs/configuration.md have these explanations."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from eval import TABLES
from scripts import write_reference
from scripts.conf_comments import ConfFile, conf_files
from scripts.reference_page import reference
from xcit.config import EvalConfig, TrainConfig
from xcit.config.composition import every_key
from xcit.errors import InputError

from ..conftest import ROOT, Result

Command = Callable[..., Result]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what the script writes."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/configuration.md", tmp_path / "docs")
    return tmp_path


def conf_file(folder: Path, name: str, text: str) -> ConfFile:
    path = folder / "conf" / name
    path.write_text(text)
    return ConfFile(folder / "conf", path, TABLES)


def test_conf_and_the_reference_are_up_to_date(command: Command) -> None:
    result = command("scripts/write_reference.py", "--check")
    assert (result.status, result.stderr) == (0, ""), "run python scripts/write_reference.py"


def test_what_is_stale_is_named_and_written(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(write_reference, "ROOT", copy)

    def call(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["write_reference.py", *arguments])
        with pytest.raises(SystemExit) as end:
            write_reference.main()
        return int(end.value.code or 0)

    recipe, page = copy / "conf/recipe/cars.yaml", copy / "docs/configuration.md"
    before = {path: path.read_text() for path in (recipe, page)}
    recipe.write_text(re.sub("compile: false # .*", "compile: false # compiles", before[recipe]))
    page.write_text(before[page].replace("`csv`", "`tsv`"))
    stale = [recipe.read_text(), page.read_text()]
    assert call("--check") == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": stale; ")[0] for line in lines] == ["conf/recipe/cars.yaml", "docs/configuration.md"]
    assert [recipe.read_text(), page.read_text()] == stale, "--check writes nothing"
    assert call() == 0
    assert {path: path.read_text() for path in (recipe, page)} == before
    assert call("--check") == 0


def test_every_key_of_the_schema_is_on_the_page() -> None:
    page = reference(conf_files(ROOT / "conf", TABLES), TABLES)
    shown = set(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE))
    sections = {"data", "model", "task", "augment", "optim", "train", "logger", "evaluate"}
    keys = {key for schema in (TrainConfig, EvalConfig) for key in every_key(schema, TABLES)}
    assert keys - sections <= shown


def test_every_description_is_one_short_line() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if re.match(r"\| `[\w.]+` \| .* \| .* \| ", line)]
    assert len(rows) > 80
    for key, *_, description in rows:
        assert 10 < len(description.removesuffix(" |")) <= 110, key


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_comment_changes_no_value(path: Path) -> None:
    file = ConfFile(ROOT / "conf", path, TABLES)
    plain = "\n".join(re.sub(r"(?<=\S) # .*", "", line) for line in file.text.split("\n"))
    bare = ConfFile(ROOT / "conf", path, TABLES)
    object.__setattr__(bare, "text", plain)
    assert yaml.safe_load(bare.with_comments()) == yaml.safe_load(file.text)
    assert [s.key for s in file.settings] and len(file.settings) <= file.text.count(" # ")


def test_comments_are_found_for_all_forms_of_values(copy: Path) -> None:
    text = """\
# A head.
defaults: [adamw, _self_] # not a key
# Why this rate was chosen.
lr: 5e-4
min_lr:    1e-5 # old
name: 'a # b'   # old
options: # old
  betas: [0.9, 0.999] # what an option of the optimizer means is not in our schema
clip_norm: # old
"""
    written = conf_file(copy, "optim/mine.yaml", text).with_comments().splitlines()
    assert written[:3] == text.splitlines()[:3]
    assert written[3].startswith("lr: 5e-4 # peak learning rate")
    assert written[4] == "min_lr:    1e-5 # learning rate at the end"
    assert written[5].startswith("name: 'a # b' # any optimizer of timm")
    assert written[6:8] == ["options: # further arguments of the optimizer", text.splitlines()[7]]
    assert written[8] == "clip_norm: # largest norm of the gradients; null: no clipping"


def test_the_description_is_that_of_the_chosen_entry(copy: Path) -> None:
    chosen = "# @package _global_\ndefaults:\n  - /model: {}\n  - _self_\nmodel:\n  image_size: 64\n"
    of_timm = conf_file(copy, "recipe/a.yaml", chosen.format("timm")).with_comments()
    of_ours = conf_file(copy, "recipe/b.yaml", chosen.format("xcit_s12")).with_comments()
    assert "for models of one size" in of_timm
    assert "position=learned" in of_ours


def test_names_and_missing_values_are_said(copy: Path) -> None:
    text = conf_file(copy, "data/mine.yaml", "name: inat\nroot: ???\nyear: 2019\n").with_comments()
    assert "root: ??? # must be given: folder that holds the data set\n" in text
    assert "year: 2019 # year of the competition: 2018 or 2019\n" in text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("data/mine.yaml", "name: digits\nroot: x\n", "data.root is not in the schema"),
        ("optim/mine.yaml", "learning_rate: 1\n", "optim.learning_rate is not in the schema"),
        ("recipe/mine.yaml", "# @package _global_\ntrain:\n  epoch: 1\n", "train.epoch is not in the schema"),
    ],
)
def test_an_unknown_key_is_named(copy: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"{name}: {message}"):
        conf_file(copy, name, text).with_comments()


def test_an_option_without_a_description_is_named(copy: Path) -> None:
    def undescribed(*, width: int = 3) -> None:
        """A model.

        Args:
            depth: Number of layers.
        """

    tables = {**TABLES, "model": {**TABLES["model"], "mine": undescribed}}
    (copy / "conf/model/mine.yaml").write_text("name: mine\nwidth: 4\n")
    files = conf_files(copy / "conf", tables)
    (mine,) = (file for file in files if file.path.stem == "mine")
    for check in (mine.with_comments, lambda: reference(files, tables)):
        with pytest.raises(InputError, match=r"model\.width: has no description"):
            check()
