"""docs/your-own-images.md is right: its commands run as they stand, on photograph-like images that the test makes."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import ROOT

# What makes a run small enough for a test. Published weights cannot be downloaded here.
SMALL = "model.patch_size=16 data.image_size=32 recipe=folder_from_scratch train.precision=fp32 data.workers=0"


@pytest.fixture(scope="module")
def commands() -> list[str]:
    page = (ROOT / "docs/your-own-images.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    install, activate = blocks[0].splitlines()
    assert (install, activate) == ("make install", "source .venv/bin/activate")
    return blocks[1:]


def test_the_ten_commands_of_the_page_run(commands: list[str], image_tree: Callable[..., Path], tmp_path: Path) -> None:
    assert len(commands) == 8, "the installation has the other two"
    image_tree("photos", {"garden": 10, "temple": 10}, suffix=".jpg")
    (tmp_path / "photos/garden/000.jpg").rename(tmp_path / "photos/garden/IMG_0001.jpg")
    environment = os.environ | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    printed = []
    for command in commands:
        if re.match("python (train|scripts/show_batch).py .*data=folder", command):
            command = command.rstrip() + f" {SMALL}"
            command += " train.epochs=1 resolutions=[32]" if "run_dir=runs/mine" in command else ""
        command = command.replace("python ", f"{sys.executable} ", 1)
        command = re.sub(r" (train|eval|scripts/\w+)\.py", rf" {ROOT}/\1.py", command)
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        printed.append(done.stdout)
    assert "2 jobs, 0 failed" in printed[6]
    assert printed[7].strip() in ("garden", "temple")
    curves = ("runs/mine/top1_vs_resolution.png", "runs/mine-eval/top1_vs_resolution.png")
    assert all((tmp_path / picture).is_file() for picture in ("batch.png", "attention.png", *curves))
