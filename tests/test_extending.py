"""docs/extending.md is right: its blocks, written into a copy of the checkout, train and evaluate."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, TINY

TABLES = {
    "xcit/tasks/__init__.py": ("TASKS", "from .focal import Focal"),
    "xcit/models/__init__.py": ("MODELS", "from .pooled import Pooled"),
    "data/__init__.py": ("DATASETS", "from .photographs import Photographs"),
}


@pytest.fixture
def extended(tmp_path: Path) -> Path:
    """The checkout with everything that the page adds."""
    for name in ("train.py", "eval.py", "conf", "xcit", "data"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    page = (ROOT / "docs" / "extending.md").read_text()
    files = re.findall(r"^`(\S+)`\n\n```\w+\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(files) == 6
    for name, content in files:
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(content)
    lines = re.findall(r"^The line in `(\S+)`, in (\w+).*?\n\n```python\n(.*?)\n```", page, re.MULTILINE | re.DOTALL)
    assert len(lines) == 3
    for name, table, line in lines:
        assert TABLES[name][0] == table
        source = (tmp_path / name).read_text()
        # As one would by hand: the import beside the others, the line at the head of the table.
        source, added = re.subn(rf"^({table}\b[^\n]*= \{{\n)", rf"\1    {line}\n", source, flags=re.MULTILINE)
        assert added == 1
        first_import = re.search(r"^from \.", source, re.MULTILINE)
        assert first_import
        start = first_import.start()
        (tmp_path / name).write_text(f"{source[:start]}{TABLES[name][1]}\n{source[start:]}")
    return tmp_path


def test_the_examples_of_the_page_train_and_evaluate(extended: Path) -> None:
    tiny = [argument for argument in TINY if not argument.startswith("model.")]
    choices = ["task=focal", "task.gamma=1.5", "model=pooled", "model.width=48", "data=photographs", "recipe=digits"]
    for command in (
        ["train.py", *choices, *tiny, "train.epochs=6", "train.global_batch_size=32", "run_dir=run"],
        ["eval.py", "checkpoint=run", "run_dir=evaluated", "resolutions=[40]", "weights=raw"],
    ):
        subprocess.run([sys.executable, *command], cwd=extended, check=True, capture_output=True)
    (row,) = json.loads((extended / "evaluated" / "results.json").read_text())
    assert (row["model"], row["eval_set"], row["images"]) == ("pooled", "photographs", 64)
    assert row["top1"] > 70
    assert "gamma: 1.5" in (extended / "run" / "config.yaml").read_text()


def test_their_options_are_checked_like_all_others(extended: Path) -> None:
    for argument, message in (
        ("task.gamma=hard", "task.gamma=hard: must be a valid number"),
        ("task.gama=1", "task.gama: unknown key; did you mean task.gamma?"),
        ("model=poled", "model=poled: unknown; did you mean pooled?"),
    ):
        command = [sys.executable, "train.py", "task=focal", argument]
        done = subprocess.run(command, cwd=extended, check=False, capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr
