"""A new run gets a new folder, a resume finds the folder again, and no run overwrites it."""

import os
from pathlib import Path

import pytest

from xcit.engine.run_folder import RunFolder, find_checkpoint, new_path, resolve
from xcit.errors import InputError


def with_checkpoint(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.last.parent.mkdir(parents=True)
    folder.last.write_bytes(b"")
    (path / "config.yaml").write_text("")
    return folder


def test_runs_that_start_together_get_separate_folders() -> None:
    paths = [new_path(None, "name") for _ in range(3)]
    assert len(set(paths)) == 3
    assert {path.parent for path in paths} == {Path("runs/name")}


def test_a_folder_with_files_is_refused_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    for restart in (False, True):
        with pytest.raises(InputError, match=f"run_dir={tmp_path}: is not empty"):
            RunFolder(tmp_path).require_free(restart=restart)
    with_checkpoint(tmp_path / "run")
    with pytest.raises(InputError, match="is not empty"):
        RunFolder(tmp_path / "run").require_free(restart=True)
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_run_killed_before_its_first_checkpoint_may_start_over(tmp_path: Path) -> None:
    for name in ("config.yaml", "classes.json", "metrics.jsonl"):
        (tmp_path / name).write_text("")
    RunFolder(tmp_path).require_free(restart=True)
    (tmp_path / "classes.json").unlink()
    with pytest.raises(InputError, match="is not empty"):
        RunFolder(tmp_path).require_free(restart=True)  # this could be an evaluation's folder


def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(InputError, match=f"run_dir={tmp_path}/new/run: {tmp_path} is read-only"):
            RunFolder(tmp_path / "new" / "run").require_free()
        assert not any(tmp_path.iterdir())
    finally:
        tmp_path.chmod(0o755)


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"{tmp_path}/file is a file"):
        RunFolder(tmp_path / "file" / "run").require_free()


def test_auto_continues_the_latest_run_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("auto", None, "name")[1] is None, "nothing to continue: a new run"
    for age, stamp in enumerate(["20260102-000000", "20260101-000000"]):
        folder = with_checkpoint(Path("runs/name") / stamp)
        os.utime(folder.last, (1000 - age, 1000 - age))
    folder, checkpoint = resolve("auto", None, "name")
    assert folder.path == Path("runs/name/20260102-000000")
    assert checkpoint == folder.last


def test_a_run_folder_means_its_last_checkpoint(tmp_path: Path) -> None:
    folder = with_checkpoint(tmp_path / "run")
    assert find_checkpoint("resume", str(folder.path)) == folder.last
    assert find_checkpoint("resume", str(folder.last)) == folder.last
    resumed, checkpoint = resolve(str(folder.last), None, "name")
    assert (resumed.path, checkpoint) == (folder.path, folder.last)
    with pytest.raises(InputError, match="is not a run folder with a checkpoint"):
        find_checkpoint("resume", str(tmp_path))
    folder.best.write_bytes(b"")
    with pytest.raises(InputError, match=r"must be a run folder or its checkpoints/last\.pt"):
        resolve(str(folder.best), None, "name")
    with pytest.raises(InputError, match="leave run_dir out"):
        resolve(str(folder.path), str(tmp_path / "other"), "name")
