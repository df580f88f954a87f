"""docs/your-own-images.md is right: its ten commands run in turn, on images that its own snippet makes."""

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import xcit
from xcit.engine.run_folder import RunFolder
from xcit.weights.formats import to_authors_names

from .conftest import ROOT, Result

Command = Callable[..., Result]

PAGE = (ROOT / "docs/your-own-images.md").read_text()
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = BLOCK.findall(PAGE[PAGE.index("## Ten commands") : PAGE.index("## Several labels")])
TASKS = BLOCK.findall(PAGE[PAGE.index("## Several labels") : PAGE.index("## If it does not learn")])

SMALLER = {"data.image_size=128": "data.image_size=32", "resolutions=[32,64,96,128,192,256,384]": "resolutions=[32,64]"}
"""What stands on the page → what the test runs instead, so that it takes seconds."""
SHORTER = ("train.epochs=2", "train.global_batch_size=16", "data.workers=0")
"""What the test adds to the commands that train: some updates, on few images."""


@pytest.fixture
def page(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """page(4, "key=value", …) runs the page's command 4 with further arguments, on images that its snippet made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # no download, whether there is a network or not
    ((_, snippet),) = BLOCK.findall(PAGE[: PAGE.index("## Ten commands")])
    assert "range(60)" in snippet
    exec(snippet.replace("range(60)", "range(12)"), {})

    def call(number: int, *more: str) -> Result:
        kind, text = COMMANDS[number - 1]
        assert kind == "sh"
        _, script, *arguments = shlex.split(text)
        smaller = [SMALLER.get(argument, argument) for argument in arguments]
        expanded = [str(Path(argument).expanduser()) for argument in smaller]  # as the shell does
        return command(script, *expanded, *more)

    return call


def test_there_are_ten_commands() -> None:
    assert len(COMMANDS) == 10
    assert re.findall(r"^\*\*(\d+)\. ", PAGE, re.MULTILINE) == [str(number) for number in range(1, 11)]


def test_all_run(page: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. The test's own environment is installed: make only says what it would do.
    install, activate = COMMANDS[0][1].strip().split(" && ")
    planned = subprocess.run(["make", "--dry-run", *install.split()[1:]], cwd=ROOT, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stderr
    assert activate in planned.stdout

    # 2. A look at the data.
    seen = page(2, "data.workers=0")
    assert seen.status == 0, seen.stderr
    assert re.fullmatch(r"data  \d+ training images and \d+ validation images in 4 classes from .*\n", seen.stderr)
    assert (tmp_path / "runs/batch/batch.png").is_file()

    # 3. Published weights that cannot be had end the run in one line; a file of them is read.
    refused = page(3, *SHORTER)
    assert (refused.status, refused.stdout) == (2, "")
    assert "cannot be downloaded" in refused.stderr and "pretrained=null trains from scratch" in refused.stderr
    assert not (tmp_path / "runs/short").exists()
    weights = tmp_path / "xcit_nano_12_p16_224_dist.pth"
    torch.save({"model": to_authors_names(xcit.create_model("xcit_n12").state_dict())}, weights)
    short = page(3, *SHORTER, f"pretrained={weights}")
    assert short.status == 0, short.stderr
    assert re.search(r"^start .*xcit_nano_12_p16_224_dist\.pth", short.stderr, re.MULTILINE)
    assert len(re.findall(r"^epoch \d/2  loss .* top1 raw", short.stderr, re.MULTILINE)) == 2

    # 4 and 5 are alternatives, so they get folders of their own here.
    tuned = page(4, *SHORTER, f"pretrained={weights}", "run_dir=runs/tuned")
    assert tuned.status == 0, tuned.stderr

    # 5. From scratch, with Ctrl-C during the first epoch's checkpoint.
    with monkeypatch.context() as patch:
        save = RunFolder.save

        def save_at_ctrl_c(folder: RunFolder, *given: object, **named: object) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            save(folder, *given, **named)  # type: ignore[arg-type]

        patch.setattr(RunFolder, "save", save_at_ctrl_c)
        stopped = page(5, *SHORTER)
    assert stopped.status == 1
    assert "stopped by SIGINT" in stopped.stderr and "resume=runs/photos" in stopped.stderr

    # 6. Resume.
    resumed = page(6)
    assert resumed.status == 0, resumed.stderr
    assert "resuming runs/photos/checkpoints/last.pt" in resumed.stderr
    assert (tmp_path / "runs/photos/top1_vs_resolution.png").is_file()

    # 7. The curves.
    lines = subprocess.run(["bash", "-c", COMMANDS[6][1]], capture_output=True, text=True, check=True).stdout
    assert lines.count('"split": "val"') == 2 and '"top1"' in lines

    # 8. Other resolutions.
    evaluated = page(8)
    assert evaluated.status == 0, evaluated.stderr
    assert (tmp_path / "runs/sizes/top1_vs_resolution.png").is_file()

    # 9. Attention maps.
    attention = page(9)
    assert (attention.status, attention.stdout) == (0, "runs/attention.jpg: 4 maps of 24 × 24 patches\n"), (
        attention.stderr
    )

    # 10. In Python.
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(COMMANDS[9][1], {})
    names = re.findall(r"^(\w+): \d+\.\d%$", printed.getvalue(), re.MULTILINE)
    assert sorted(names) == ["leaves", "petals", "sky", "temple"]


def test_the_advice_uses_options_that_exist(command: Command) -> None:
    advice = PAGE[PAGE.index("## If it does not learn") : PAGE.index("## Labels in a table")]
    typed = []
    for key, values in re.findall(r"`'?((?:\w+\.)*\w+)=([^`']+)'?`", advice):
        typed += [f"{key}={value}" for value in ([values] if "[" in values else values.split(",")) if key != "run_dir"]
    assert len(typed) > 15
    for option in typed:
        result = command("train.py", "data=folder", "data.root=nowhere", "pretrained=null", option)
        assert result.stderr.startswith("error: nowhere: "), f"{option}: {result.stderr}"


def test_the_command_for_a_table_has_options_that_exist(command: Command) -> None:
    ((_, text),) = BLOCK.findall(PAGE[PAGE.index("## Labels in a table") :])
    result = command("train.py", *shlex.split(text.replace("\\\n", " "))[2:], "pretrained=null")
    assert re.fullmatch(
        r"error: data.path=.*/photos/labels.csv: cannot be read \(No such file or dir.*\)\n", result.stderr
    )


@pytest.mark.parametrize(("text", "task"), [(TASKS[0][1], "multilabel"), (TASKS[1][1], "regress")])
def test_labels_and_numbers_need_one_command(
    text: str, task: str, page: Callable[..., Result], command: Command, tmp_path: Path
) -> None:
    """With the augmentation of the recipe, which smooths the labels of classes."""
    images = sorted((tmp_path / "photos").rglob("*.jpg"))
    rows = [
        f"{path.relative_to(tmp_path / 'photos')},{number % 2},{'' if number % 5 else 1},{number}"
        for number, path in enumerate(images)
    ]
    (tmp_path / "photos" / "labels.csv").write_text("\n".join(["image,roof,tree,height", *rows]))
    _, script, *arguments = shlex.split(text.replace("\\\n", "").replace("~", str(tmp_path)))
    smaller = [SMALLER.get(argument, argument) for argument in arguments]
    done = command(script, *smaller, *SHORTER, "pretrained=null", "model.depth=1", "resolutions=[32]")
    assert done.status == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["task"]["name"], config["augment"]["label_smoothing"]) == (task, 0.0)
