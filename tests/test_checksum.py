"""A damaged file is never used in silence."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from xcit.errors import InputError
from xcit.storage import read_tensors, write_safetensors, write_tensors

from .conftest import ROOT

DAMAGES = 100


def some_tensors() -> dict[str, torch.Tensor]:
    return {f"layer {i}": torch.randn(30, 40) for i in range(4)}


def write_ours(path: Path) -> None:
    write_tensors(path, {"step": 3, "config": {"lr": 1e-3}, "task": some_tensors()})


def write_older(path: Path) -> None:
    torch.save({"step": 3, "config": {"lr": 1e-3}, "task": some_tensors()}, path)


def damage(content: bytes, random: random.Random) -> bytes:
    """Flip a bit, overwrite a block with zeros, cut the end off, or insert a byte."""
    place = random.randrange(len(content))
    match random.randrange(4):
        case 0:
            return content[:place] + bytes([content[place] ^ 1 << random.randrange(8)]) + content[place + 1 :]
        case 1:
            return content[:place] + bytes(len(content[place : place + 512])) + content[place + 512 :]
        case 2:
            return content[:place]
        case _:
            return content[:place] + random.randbytes(1) + content[place:]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def used_in_silence(path: Path, *, unless_equal: bool) -> list[int]:
    """The damages after which the file was read without an error."""
    content, whole = path.read_bytes(), read_tensors(path)
    used = []
    for seed in range(DAMAGES):
        path.write_bytes(damaged := damage(content, random.Random(seed)))
        try:
            found = read_tensors(path)
        except InputError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
        else:
            if damaged != content and not (unless_equal and equal(found, whole)):
                used.append(seed)
    return used


def test_no_damage_of_a_checkpoint_is_accepted(tmp_path: Path) -> None:
    write_ours(tmp_path / "a.pt")
    assert used_in_silence(tmp_path / "a.pt", unless_equal=False) == []


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.pt", write_older), ("a.safetensors", lambda path: write_safetensors(path, some_tensors()))],
)
def test_no_damage_of_other_files_changes_what_is_read(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / name)
    assert used_in_silence(tmp_path / name, unless_equal=True) == []


def test_torch_and_safetensors_read_our_files(tmp_path: Path) -> None:
    write_ours(tmp_path / "a.pt")
    for mmap in (False, True):
        assert torch.load(tmp_path / "a.pt", weights_only=True, mmap=mmap)["step"] == 3
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = some_tensors()
    write_safetensors(tmp_path / "a.safetensors", tensors)
    assert equal(safetensors.load_file(tmp_path / "a.safetensors"), tensors)
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


WRITE_THE_SAME = """
import sys, torch
from pathlib import Path
from xcit.storage import write_safetensors
write_safetensors(Path(sys.argv[1]), {"größe": torch.ones(3), "b": torch.zeros(2, dtype=torch.int64)})
"""


def test_the_same_tensors_give_the_same_file_in_every_process(tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.safetensors" for seed in range(4)]
    for seed, path in enumerate(paths):
        environment = os.environ | {"PYTHONHASHSEED": str(seed)}
        subprocess.run([sys.executable, "-c", WRITE_THE_SAME, path], check=True, cwd=ROOT, env=environment)
    assert len({path.read_bytes() for path in paths}) == 1
    assert read_tensors(paths[0])["größe"].tolist() == [1, 1, 1]
