"""--help explains each setting, and shows the values of the choices at hand."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import ROOT, Result

Command = Callable[..., Result]


def test_each_setting_has_its_value_and_its_explanation(command: Command) -> None:
    text = command("train.py", "--help").stdout
    settings = re.findall(r"^  ([\w.]+)=(\S*) *\n? +(\S.*)$", text, re.MULTILINE)
    assert ("train.epochs", "16") in [found[:2] for found in settings]
    assert len(settings) == len(re.findall(r"^  [\w.]+=", text, re.MULTILINE)), "each has an explanation"
    assert "${" not in text


def test_the_help_fits_the_choices(command: Command) -> None:
    text = command("train.py", "--help", "data=folder", "model=xcit_s12").stdout
    assert "data.root=…" in text
    assert "data.val_fraction=0.2" in text
    assert "[folder]" in text
    assert "[xcit_s12]" in text
    assert "[xcit_n12" not in text


@pytest.mark.parametrize(
    ("script", "group", "other"), [("train.py", "recipe", "checkpoint"), ("eval.py", "task", "optim")]
)
def test_the_groups_of_a_script_are_those_that_it_accepts(
    command: Command, script: str, group: str, other: str
) -> None:
    groups = re.findall(r"^  (\w+) +\S", command(script, "--help").stdout.partition("\nSettings")[0], re.MULTILINE)
    assert group in groups
    assert other not in groups


def test_the_explanation_is_that_of_the_choice(command: Command) -> None:
    text = command("train.py", "--help", "data=folder", "data.root=/x", "model=xcit_s12").stdout
    root, name = (re.search(rf"^  {key}=\S+ +(.*)$", text, re.MULTILINE) for key in ("data.root", "model.name"))
    assert root and "CLASS/IMAGE" in root[1] and "must be given" not in root[1]
    assert name and "timm" not in name[1]


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_a_reader_that_ends_early_is_no_error(arguments: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # as `head` does when it has its lines
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.stderr == ""
