"""A writer that fails or is killed never leaves a partial file."""

import subprocess
import sys
from pathlib import Path

import pytest

from xcit.storage import csv_text, read_tensors, write_atomically, write_tensors

DIE_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from xcit.storage import write_atomically
def write(file):
    file.write(b"half of the new")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]), write)
"""


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    died = subprocess.run([sys.executable, "-c", DIE_WHILE_WRITING, str(path)], check=False)
    assert died.returncode == -9
    assert path.read_bytes() == b"old"


def test_a_writer_that_fails_leaves_no_file(tmp_path: Path) -> None:
    def fail(file: object) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "file", fail)
    assert not any(tmp_path.iterdir())


def test_plain_data_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.pt", {"step": 3, "best": None, "config": {"names": ["a"], "lr": 1e-3}})
    assert read_tensors(tmp_path / "a.pt") == {"step": 3, "best": None, "config": {"names": ["a"], "lr": 1e-3}}


def test_csv_has_a_column_for_every_key() -> None:
    assert csv_text([{"a": 1}, {"a": 2, "b": 0.1}]) == "a,b\n1,\n2,0.1\n"
