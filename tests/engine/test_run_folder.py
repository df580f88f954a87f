"""A new run gets a new folder, a resume finds the folder again, and no run overwrites it."""

import os
from pathlib import Path

import pytest

from xcit.engine.resume import find_origin, folder_for
from xcit.engine.run_folder import RunFolder, new_path
from xcit.errors import InputError

from .test_checkpoints import write_checkpoint


def with_checkpoint(path: Path, step: int = 5) -> RunFolder:
    folder = RunFolder(path)
    folder.last.parent.mkdir(parents=True)
    write_checkpoint(folder.last, step)
    (path / "config.yaml").write_text("")
    return folder


def test_runs_that_start_together_get_separate_folders() -> None:
    paths = [new_path(None, "name") for _ in range(3)]
    assert len(set(paths)) == 3
    assert {path.parent for path in paths} == {Path("runs/name")}


@pytest.mark.parametrize("training", [False, True])
def test_a_folder_with_files_is_refused_and_unchanged(tmp_path: Path, training: bool) -> None:
    for name, beside in (("precious", ()), ("precious", FAILED), ("config.yaml", ()), ("results.json", FAILED)):
        folder = tmp_path / name / str(len(beside))
        folder.mkdir(parents=True)
        for each in (*beside, name):
            (folder / each).write_text("mine")
        with pytest.raises(InputError) as refused:
            RunFolder(folder).require_free(training=training)
        # An evaluation does not take the folder of a training run.
        named = name if training or not beside else "classes.json"
        assert str(refused.value) == f"run_dir={folder}: is not empty (it has {named}); choose a new folder"
        assert (folder / name).read_text() == "mine"


def test_a_folder_with_a_checkpoint_is_refused_with_the_way_to_resume_it(tmp_path: Path) -> None:
    with_checkpoint(tmp_path / "run")
    line = f"run_dir={tmp_path}/run: is not empty (it has checkpoints); choose a new folder"
    for training, more in ((True, f", or continue its run with resume={tmp_path}/run"), (False, "")):
        with pytest.raises(InputError) as refused:
            RunFolder(tmp_path / "run").require_free(training=training)
        assert str(refused.value) == line + more


FAILED = ("environment.json", "config.yaml", "classes.json")
FIRST_EPOCH = '{"step": 1, "epoch": 1, "split": "train"}\n{"step": 1, "epoch": 1, "split": "val"}\n'


@pytest.mark.parametrize("resume", ["none", "auto"])
def test_the_folder_of_a_run_that_failed_before_its_first_checkpoint_is_taken_again(
    tmp_path: Path, resume: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in FAILED:
        (tmp_path / name).write_text("")
    for name in ("checkpoints", "tensorboard", "wandb"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoints/.last.pt.1.tmp").write_text("half a checkpoint of a killed process")
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(FIRST_EPOCH)
    assert find_origin(resume, str(tmp_path), str) is None
    folder = folder_for(None, resume, str(tmp_path), "name")
    folder.create()
    folder.close()
    note = "an earlier start ended before its first checkpoint; its files are overwritten"
    assert capsys.readouterr().err == f"note: {tmp_path}: {note}\n"

    metrics.write_text(FIRST_EPOCH + '{"step": 2, "epoch": 2, "split": "train"}\n')  # it has lost its checkpoint
    with pytest.raises(InputError, match=r"is not empty \(it has metrics\.jsonl\)"):
        folder_for(None, resume, str(tmp_path), "name")
    with pytest.raises(InputError, match="holds a run that cannot be continued \\(it has no checkpoint\\)"):
        find_origin("auto", str(tmp_path), str)


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
    with pytest.raises(InputError, match=f"{tmp_path}/file is not a folder"):
        RunFolder(tmp_path / "file" / "run").require_free()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("x" * 256, "File name too long"),
        ("new/" + "é" * 128 + "/run", "File name too long"),  # each é has two bytes
        ("/".join(["x" * 200] * 25), "File name too long"),
        ("a\0b", "embedded null byte"),
    ],
)
def test_a_path_that_no_file_system_takes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for free in (
        lambda: RunFolder(Path(path)).require_free(),
        lambda: find_origin("auto", path, str),
        lambda: folder_for(None, "none", path, "name"),
    ):
        with pytest.raises(InputError) as refused:
            free()
        assert str(refused.value) == f"run_dir={path}: cannot be used ({reason})"
    with pytest.raises(InputError) as refused:
        find_origin(path, None, str)
    assert str(refused.value) == f"resume={path}: cannot be used ({reason})"
    assert not any(tmp_path.iterdir())


def test_auto_continues_the_latest_run_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_origin("auto", None, lambda: "name") is None, "nothing to continue: a new run"
    for age, stamp in enumerate(["20260102-000000", "20260101-000000"]):
        folder = with_checkpoint(Path("runs/name") / stamp)
        for path in (folder.last, folder.path):
            os.utime(path, (1000 - age, 1000 - age))
    origin = find_origin("auto", None, lambda: "name")
    assert origin
    assert origin.folder.path == Path("runs/name/20260102-000000")
    assert origin.checkpoint == origin.folder.last
    origin.folder.lock.release()


def test_resume_takes_a_run_folder_or_any_of_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = with_checkpoint(tmp_path / "run")
    write_checkpoint(folder.best, 3)
    monkeypatch.chdir(folder.last.parent)
    for resume, checkpoint, unused in (
        (str(folder.path), folder.last, []),
        (str(folder.last), folder.last, []),
        (str(folder.best), folder.best, [folder.last]),  # last.pt is of a later update
        ("best.pt", Path("best.pt"), [folder.last]),
    ):
        origin = find_origin(resume, None, lambda: "name")
        assert origin
        origin.folder.lock.release()
        assert (origin.checkpoint, origin.unused, origin.folder.path) == (checkpoint, unused, folder.path)
        assert folder_for(origin, resume, None, "name") is origin.folder
        with pytest.raises(InputError, match="leave run_dir out"):
            folder_for(origin, resume, str(tmp_path / "other"), "name")
    for resume, reason in (
        (str(tmp_path), "is not a run folder with a checkpoint"),
        (str(tmp_path / "nowhere"), "no such file or run folder"),
        (str(folder.path / "config.yaml"), "must be a run folder or a checkpoint in one"),
    ):
        with pytest.raises(InputError, match=f"resume={resume}: {reason}"):
            find_origin(resume, None, lambda: "name")


def test_a_finished_run_is_continued_in_a_new_folder(tmp_path: Path) -> None:
    folder = with_checkpoint(tmp_path / "run")
    folder.results.write_text("[]")
    origin = find_origin(str(folder.path), None, lambda: "name")
    assert origin and origin.is_finished
    assert not (folder.path / "run.lock").exists(), "nothing is written to a finished run"
    assert folder_for(origin, str(folder.path), str(tmp_path / "longer"), "name").path == tmp_path / "longer"
    with pytest.raises(InputError, match="its run is finished; to train it longer, give resume="):
        folder_for(origin, "auto", str(folder.path), "name")


def test_a_run_killed_while_its_folder_is_made_may_start_over(tmp_path: Path) -> None:
    for name in ("run.lock", *FAILED):
        (tmp_path / name).write_text("")
        RunFolder(tmp_path).require_free(training=True)


def test_two_starts_in_one_folder_do_not_meet(tmp_path: Path) -> None:
    """Both find the folder free. The second one notices when it takes the lock, after the first has ended."""
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    for folder in (first, second):
        folder.require_free(training=True)
    first.create()
    with pytest.raises(InputError, match="another process is writing"):
        second.create()
    first.last.parent.mkdir()
    write_checkpoint(first.last, 7)
    first.close()
    with pytest.raises(InputError, match="is not empty"):
        second.create()
    second.close()
    assert [path.name for path in first.path.iterdir()] == ["checkpoints"]


def test_a_folder_to_which_nothing_was_written_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.require_free()
    folder.create()
    folder.close()
    assert not folder.path.exists()


def test_auto_ignores_what_a_refused_resume_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    older, newer = (with_checkpoint(Path("runs/name") / stamp) for stamp in ("a", "b"))
    os.utime(older.last, (1000, 1000))
    (older.path / "run.lock").touch()
    (older.path / "run.lock").unlink()
    origin = find_origin("auto", None, lambda: "name")
    assert origin and origin.folder.path == newer.path
    origin.folder.lock.release()


def test_a_full_disk_leaves_nothing_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, mode: str) -> None:
        os.close(descriptor)
        raise OSError(28, "No space left on device")

    folder = RunFolder(tmp_path / "run")
    folder.require_free()
    with monkeypatch.context() as patched:
        patched.setattr("xcit.engine.run_lock.os.fdopen", full)
        with pytest.raises(InputError, match=r"cannot be made \(No space left on device\)"):
            folder.create()
    assert not folder.path.exists()
