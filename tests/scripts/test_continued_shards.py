"""scripts/make_shards.py continues after an interruption, and mends what was lost or damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data.shards.index import INDEX

from ..conftest import Result, launch
from .shards import SCRIPT, files

Command = Callable[..., Result]


# Runs in every process of the script. After three shards, SIGKILL kills the script, or SIGINT reaches all processes.
STOPS_AFTER_THREE = """
import signal
from contextlib import suppress
from pathlib import Path
import xcit.storage
os.setsid()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore SIGINT
main, number, write_text = os.getpid(), signal.{}, xcit.storage.write_text
def write_and_stop(path, text):
    write_text(path, text)
    if len(list(path.parent.glob("*.tar.json"))) >= 3:
        with suppress(FileExistsError):
            Path("stopping").mkdir()  # fails in all processes but the first
            os.kill(main, number) if number == signal.SIGKILL else os.killpg(main, number)
        signal.pause()
xcit.storage.write_text = write_and_stop
"""


@pytest.mark.parametrize(("number", "status", "told"), [("SIGKILL", -9, ""), ("SIGINT", 1, "error: interrupted\n")])
def test_a_stopped_run_goes_on_and_keeps_what_was_finished(
    command: Command, tree: Path, tmp_path: Path, number: str, status: int, told: str
) -> None:
    arguments = (SCRIPT, str(tree), "shards", "--samples", "4", "--workers", "2")
    stopped = launch(*arguments, cwd=tmp_path, before=STOPS_AFTER_THREE.format(number))
    assert (stopped.status, stopped.stderr) == (status, told)
    train = tmp_path / "shards" / "train"
    assert not (train / INDEX).exists()
    finished = {path.name.removesuffix(".json") for path in (train / ".unfinished").glob("*.tar.json")}
    assert 3 <= len(finished) < 6
    (train / ".unfinished" / f"{max(finished)}.json").write_text("half")
    finished.remove(max(finished))
    before = {name: (train / name).stat().st_ino for name in finished}
    damaged = sorted(finished)[0]
    (train / damaged).write_bytes(bytes((train / damaged).stat().st_size))
    (train / ".unfinished" / "000005.tar.99.tmp").write_bytes(b"half")
    result = command(*arguments)
    assert result.status == 0, result.stderr
    assert {name for name in finished if (train / name).stat().st_ino == before[name]} == finished - {damaged}
    assert command(SCRIPT, str(tree), "whole", "--samples", "4").status == 0
    assert files(tmp_path / "shards") == files(tmp_path / "whole")
    again = command(*arguments)
    assert again.stdout == "shards/train: already finished\nshards/val: already finished\n"


Finished = tuple[tuple[str, ...], dict[str, bytes]]


@pytest.fixture
def finished(command: Command, tree: Path, tmp_path: Path) -> Finished:
    """Make all shards. Return the arguments of the command and the files that it wrote."""
    arguments = (SCRIPT, str(tree), "shards", "--samples", "4")
    assert command(*arguments).status == 0
    return arguments, files(tmp_path / "shards")


def test_of_finished_shards_the_lost_and_the_damaged_ones_alone_are_made_anew(
    command: Command, finished: Finished, tmp_path: Path
) -> None:
    arguments, before = finished
    train = tmp_path / "shards" / "train"
    kept = {path: path.stat().st_ino for path in train.glob("*.tar") if path.stem not in ("000001", "000003")}
    (train / "000001.tar").unlink()
    (train / "000003.tar").write_bytes(bytes(100))
    result = command(*arguments)
    assert result.status == 0, result.stderr
    assert result.stdout.startswith("shards/train: 6 shards, 4 of them kept, 23 images of 2 classes, ")
    assert {path: path.stat().st_ino for path in kept} == kept
    assert files(tmp_path / "shards") == before
    assert command(*arguments).stdout == "shards/train: already finished\nshards/val: already finished\n"


def test_a_call_that_was_killed_while_it_mended_is_finished_by_the_next(
    command: Command, finished: Finished, tmp_path: Path
) -> None:
    arguments, before = finished
    (tmp_path / "shards/train/.unfinished").mkdir()
    assert "6 shards, 6 of them kept" in command(*arguments).stdout
    assert files(tmp_path / "shards") == before
    assert not (tmp_path / "shards/train/.unfinished").exists()


def test_other_options_or_other_images_are_not_mixed_in(command: Command, tree: Path, tmp_path: Path) -> None:
    assert command(SCRIPT, str(tree), "shards", "--samples", "4").status == 0
    before = files(tmp_path / "shards")
    line = "error: shards/train: contains shards of other images or options; give a new folder\n"
    assert command(SCRIPT, str(tree), "shards", "--samples", "5").stderr == line
    (tree / "train" / "red" / "000.JPEG").unlink()
    assert command(SCRIPT, str(tree), "shards", "--samples", "4").stderr == line
    assert files(tmp_path / "shards") == before
    shutil.copytree(tree, tmp_path / "full" / "train")
    refused = command(SCRIPT, str(tree), "full")
    assert (refused.status, refused.stderr) == (2, "error: full/train: is not empty; give a new folder\n")


def test_a_damaged_record_of_a_finished_shard_is_not_believed(
    command: Command, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted call leaves a record of each shard. The index must not get its wrong numbers."""
    assert command(SCRIPT, str(tree), "whole", "--samples", "4").status == 0
    folder = tmp_path / "shards" / "train"
    shutil.copytree(tmp_path / "whole" / "train", folder)
    index = json.loads((folder / INDEX).read_text())
    unfinished = folder / ".unfinished"
    unfinished.mkdir()
    (unfinished / "plan.json").write_text(json.dumps(index["made"]))
    for number, change in enumerate(({"samples": 3}, {"bytes": 1}, {"name": "1.tar"}, {"sha256": "0" * 64}, {"x": 1})):
        shard = index["shards"][number]
        (unfinished / f"{shard['name']}.json").write_text(json.dumps(shard | change))
    (folder / INDEX).unlink()
    result = command(SCRIPT, str(tree), "shards", "--samples", "4")
    assert result.status == 0, result.stderr
    assert files(folder) == files(tmp_path / "whole" / "train")
