"""scripts/make_shards.py --index-only and --check, for shards that exist."""

import json
from collections.abc import Callable
from pathlib import Path

from data.shards.index import INDEX, parse_index

from ..conftest import Result
from .shards import SCRIPT

Command = Callable[..., Result]


def test_the_index_of_shards_that_others_made(command: Command, tree: Path, tmp_path: Path) -> None:
    import webdataset

    (tmp_path / "theirs").mkdir()
    with webdataset.ShardWriter(str(tmp_path / "theirs" / "imagenet-%04d.tar"), maxcount=4, verbose=0) as writer:
        for number, path in enumerate(sorted((tree / "val").rglob("*.JPEG"))):
            label = ["green", "red"].index(path.parent.name)
            writer.write(
                {"__key__": f"{path.parent.name}_{number}", "jpg": path.read_bytes(), "cls": label, "json": {}}
            )
    (tmp_path / "names").write_text("green\nred\n")
    result = command(SCRIPT, "--index-only", "theirs", "--classes", "names")
    assert (result.status, result.stdout) == (0, "theirs/index.json: 2 shards, 7 images of 2 classes\n")
    index = parse_index((tmp_path / "theirs" / INDEX).read_bytes(), "")
    assert (index.classes, [shard.samples for shard in index.shards]) == (["green", "red"], [4, 3])
    assert command(SCRIPT, "--index-only", "theirs").status == 0
    assert json.loads((tmp_path / "theirs" / INDEX).read_text())["classes"] == ["0", "1"]


def test_shards_are_compared_with_their_index(command: Command, tree: Path, tmp_path: Path) -> None:
    assert command(SCRIPT, str(tree), "shards", "--samples", "4").status == 0
    result = command(SCRIPT, "--check", "shards/train")
    assert (result.status, result.stdout) == (0, "shards/train: all 6 shards are as index.json has them\n")
    flipped = tmp_path / "shards" / "train" / "000002.tar"
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    (tmp_path / "shards" / "train" / "000004.tar").unlink()
    result = command(SCRIPT, "--check", "shards/train")
    lines = result.stderr.splitlines()
    assert (result.status, lines[0]) == (2, "error: shards/train: 2 of 6 shards are not as index.json has them")
    assert lines[1].startswith("  000002.tar: its SHA-256 is ")
    assert lines[2] == "  000004.tar: cannot be read (No such file or directory)"
    assert "nowhere/index.json: cannot be read (No such" in command(SCRIPT, "--check", "nowhere").stderr
