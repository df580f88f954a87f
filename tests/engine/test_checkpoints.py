"""Which checkpoints of a run are kept, and which one it continues from."""

from pathlib import Path

import pytest
import torch

from xcit.engine.checkpoints import Checkpoints, Score
from xcit.engine.resume import find_origin
from xcit.engine.run_folder import RunFolder
from xcit.errors import InputError, WriteError
from xcit.storage import read_tensors, write_tensors

from .toy import ToyLoader, run


def content(step: int) -> dict[str, object]:
    return {
        "format": "xcit training state, version 3",
        "task": {"weight": torch.full((8,), float(step))},
        "ema": None,
        "optimizer": {},
        "scaler": {},
        "step": step,
        "epoch": step,
        "best": None,
        "identity": {"config": {}, "classes": ["a"]},
    }


def write_checkpoint(path: Path, step: int) -> None:
    write_tensors(path, content(step))


def steps(folder: Path) -> dict[str, int]:
    return {path.name: read_tensors(path)["step"] for path in folder.glob("*.pt")}


def keep_scores(folder: Path, scores: list[float], *, keep_last: int, keep_best: int) -> Checkpoints:
    """Write a checkpoint after each of these validations; the step is the number of the epoch."""
    checkpoints = Checkpoints(folder, keep_last, keep_best)
    best: dict[int, Score] = {}
    for epoch, score in enumerate(scores, 1):
        best = checkpoints.rank(best, epoch, (score, "raw"), "score")
        checkpoints.write_best(content(epoch), list(best), epoch)
        checkpoints.write_last(content(epoch), list(best))
    return checkpoints


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "kept"),
    [
        (1, 1, {"last.pt": 5, "best.pt": 2}),
        (2, 1, {"last.pt": 5, "last-1.pt": 4, "best.pt": 2}),
        (3, 2, {"last.pt": 5, "last-1.pt": 4, "last-2.pt": 3, "best.pt": 2, "best-epoch-4.pt": 4}),
        (1, 3, {"last.pt": 5, "best.pt": 2, "best-epoch-4.pt": 4, "best-epoch-3.pt": 3}),
    ],
)
def test_the_last_and_the_best_are_kept(tmp_path: Path, keep_last: int, keep_best: int, kept: dict[str, int]) -> None:
    keep_scores(tmp_path / "checkpoints", [1.0, 9.0, 5.0, 7.0, 2.0], keep_last=keep_last, keep_best=keep_best)
    assert steps(tmp_path / "checkpoints") == kept


def test_a_better_checkpoint_moves_the_best_one_down(tmp_path: Path) -> None:
    keep_scores(tmp_path / "checkpoints", [1.0, 2.0, 2.0, 3.0], keep_last=1, keep_best=2)
    assert steps(tmp_path / "checkpoints") == {"last.pt": 4, "best.pt": 4, "best-epoch-2.pt": 2}


@pytest.mark.parametrize("place", ["the best", "last"])
def test_a_kill_while_checkpoints_are_renamed_changes_nothing_in_the_end(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epoch is repeated from last.pt, and leaves the files of a run that was not killed."""
    checkpoints = keep_scores(tmp_path / "checkpoints", [1.0, 2.0], keep_last=2, keep_best=2)
    best = checkpoints.rank({2: (2.0, "raw"), 1: (1.0, "raw")}, 3, (3.0, "raw"), "score")
    with monkeypatch.context() as patch:

        def killed(path: Path, content: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("xcit.engine.checkpoints.write_tensors", killed)
        with pytest.raises(KeyboardInterrupt):
            if place == "the best":
                checkpoints.write_best(content(3), list(best), 3)
            else:
                checkpoints.write_last(content(3), list(best))
    assert steps(tmp_path / "checkpoints")["last.pt"] == 2
    assert steps(tmp_path / "checkpoints")["best.pt"] == 2
    checkpoints.write_best(content(3), list(best), 3)
    checkpoints.write_last(content(3), list(best))
    assert steps(tmp_path / "checkpoints").items() >= {"last.pt": 3, "best.pt": 3, "best-epoch-2.pt": 2}.items()


def test_a_run_keeps_what_it_was_told_to(tmp_path: Path) -> None:
    state, _ = run(tmp_path, ToyLoader(1), epochs=4, scores=[1.0, 9.0, 5.0, 7.0], keep_last=2, keep_best=2)
    kept = steps(RunFolder(tmp_path / "run").last.parent)
    assert kept == {"last.pt": 4, "last-1.pt": 3, "best.pt": 2, "best-epoch-4.pt": 4}
    assert state.best_scores == {2: (9.0, "raw"), 4: (7.0, "raw")}


def damage(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


@pytest.mark.parametrize("resume", ["auto", "the folder"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(
    tmp_path: Path, resume: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    keep_scores(folder.last.parent, [3.0, 2.0, 1.0], keep_last=2, keep_best=1)
    folder.metrics.write_text("rows\n")
    damage(folder.last)
    origin = find_origin("auto" if resume == "auto" else str(tmp_path), str(tmp_path), str)
    assert origin
    assert origin.checkpoint.name == "last-1.pt", "it is newer than best.pt"
    note = f"{folder.last}: damaged (its content differs from its checksum); continuing from {origin.checkpoint}"
    assert note in capsys.readouterr().err
    origin.set_unused_aside()
    origin.folder.lock.release()
    assert steps(folder.last.parent) == {"last-1.pt": 2, "best.pt": 1}
    assert {path.name for path in (folder.last.parent / "set_aside").rglob("*.*")} == {"last.pt", "metrics.jsonl"}


def test_a_folder_whose_checkpoints_are_all_damaged_is_never_started_anew(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    keep_scores(folder.last.parent, [1.0], keep_last=1, keep_best=1)
    damage(folder.last)
    folder.best.unlink()
    with pytest.raises(InputError, match=r"holds a run that cannot be continued \(.*last\.pt: damaged"):
        find_origin("auto", str(tmp_path), str)
    assert not (tmp_path / "run.lock").exists()
    folder.last.unlink()
    folder.results.write_text("[]")
    with pytest.raises(InputError, match=r"holds a run that cannot be continued \(it has no checkpoint\)"):
        find_origin("auto", str(tmp_path), str)


def test_a_run_without_last_continues_from_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path)
    keep_scores(folder.last.parent, [1.0, 0.5], keep_last=1, keep_best=1)
    folder.last.unlink()
    origin = find_origin("auto", str(tmp_path), str)
    assert origin and origin.checkpoint == folder.best
    assert f"note: {folder.last}: is missing; continuing from {folder.best}\n" in capsys.readouterr().err
    origin.folder.lock.release()


def test_scores_whose_checkpoints_are_gone_are_dropped(tmp_path: Path) -> None:
    checkpoints = keep_scores(tmp_path / "checkpoints", [3.0, 2.0, 1.0], keep_last=1, keep_best=3)
    scores = {1: (3.0, "raw"), 2: (2.0, "raw"), 3: (1.0, "raw")}
    assert checkpoints.existing(scores) == scores
    checkpoints.best.unlink()
    assert checkpoints.existing(scores) == {2: (2.0, "raw"), 3: (1.0, "raw")}
    assert read_tensors(checkpoints.best)["step"] == 2, "the best one that is left"
    checkpoints.best_of(3).unlink()
    assert checkpoints.existing({2: (2.0, "raw"), 3: (1.0, "raw")}) == {2: (2.0, "raw")}


def test_an_epoch_is_ranked_once(tmp_path: Path) -> None:
    """A second try to write a checkpoint ranks its epoch again."""
    scores = {10: (5.0, "raw"), 7: (4.0, "raw")}
    best = Checkpoints(tmp_path, keep_best=2)
    assert best.rank(scores, 10, (5.0, "raw"), "score") == {10: (5.0, "raw"), 7: (4.0, "raw")}
    assert best.rank({1: (0.3, "raw"), 2: (0.5, "raw")}, 3, (0.4, "ema"), "loss") == {1: (0.3, "raw"), 3: (0.4, "ema")}


def test_a_failed_save_leaves_the_older_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = keep_scores(tmp_path / "checkpoints", [1.0, 2.0, 3.0], keep_last=3, keep_best=1)
    before = steps(tmp_path / "checkpoints")

    def full(path: Path, content: object) -> None:
        raise WriteError(28, "No space left on device", str(path))

    monkeypatch.setattr("xcit.engine.checkpoints.write_tensors", full)
    with pytest.raises(WriteError, match=r"/last\.pt: cannot be written"):
        checkpoints.write_last(content(4), [3])
    assert steps(tmp_path / "checkpoints") == before
