"""A run on a table of the user's own images, its resume and its evaluation."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from data.datasets import DATASETS
from xcit.errors import InputError

from .conftest import TINY, Result
from .test_recipes import composed

Command = Callable[..., Result]
SMALL = (*TINY, "+model.depth=1", "recipe=digits", "data.workers=0", "train.global_batch_size=8", "resolutions=[16]")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """24 pieces of two photographs, four of each of six visitors. Only every fourth is a flower."""
    pieces = np.random.default_rng(0).integers(400, size=(24, 2))
    lines = ["image,label,visitor"]
    for number, (x, y) in enumerate(pieces.tolist()):
        pixels = load_sample_images().images[number % 4 == 0]
        Image.fromarray(pixels[y : y + 24, x : x + 24]).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{'flower' if number % 4 == 0 else 'china'},v{number // 4}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    return tmp_path / "labels.csv"


def test_a_run_on_a_table_is_resumed_and_evaluated_with_the_same_images(
    command: Command, table: Path, tmp_path: Path
) -> None:
    data = ("data=table", f"data.path={table}", "data.labels=[label]", "data.group=visitor")
    folds = ("data.folds=3", "data.fold=0", "data.sampling=balanced")
    result = command("train.py", *SMALL, *data, *folds, "run_dir=run")
    assert result.status == 0, result.stderr
    said = "16 training images and 8 validation images in 2 classes from"
    decided = "kind class, as column label holds names; fold 0 of 3 is held out, groups of visitor together"
    assert f"{said} {table} ({decided})" in result.stderr
    last = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    assert last["identity"]["order"]["data.sampling"] == "balanced"

    # The run's own fold is evaluated without a note, another one with a note.
    for number, (fold, noted) in enumerate({(): False, ("data.fold=1",): True}.items()):
        result = command("eval.py", "checkpoint=run", *fold, "weights=raw", f"run_dir=eval{number}")
        assert result.status == 0, result.stderr
        assert ("held out in fold 1 of 3 by data.split_seed=0 now" in result.stderr) == noted
        assert [row["images"] for row in json.loads((tmp_path / f"eval{number}/results.json").read_text())] == [8]

    result = command("train.py", "resume=run", "run_dir=longer", "train.epochs=2", "data.fold=1")
    assert result.status == 0, result.stderr
    assert "the run held out other images for validation than those that are held out in fold 1 of 3" in result.stderr


@pytest.mark.parametrize(
    ("task", "cells", "kind"),
    [
        ("regress", ["3", "70"], "values"),
        ("regress", ["0", "1"], "values"),
        ("multilabel", ["0", "1"], "classes"),
        ("classify", ["china", "flower"], "class"),
        (
            "regress",
            ["1", "99,135"],
            "row 3, column label: '99,135' is not a number; expected one such as 3, -0.5 or 1e-3",
        ),
        ("regress", ["99,135", "4"], "row 2, column label: '99,135' is not a number; expected one such as"),
        (
            "multilabel",
            ["china", "flower"],
            "row 2, column label: 'china' is not 0, 1, true or false; for a column that",
        ),
        ("classify", ["3", "70"], "data.kind=auto: column label holds whole numbers; give data.kind=class if these"),
        (
            "classify",
            ["1", "99,135"],
            "data.kind=auto: column label holds numbers with a decimal comma; give data.kind",
        ),
    ],
)
def test_the_task_says_which_kind_of_labels_the_table_holds(
    table: Path, task: str, cells: list[str], kind: str
) -> None:
    table.write_text("image;label\n" + "\n".join(f"{number}.png;{cells[number % 2]}" for number in range(24)))
    given = ("data=table", f"data.path={table}", "data.labels=[label]", "data.delimiter=';'", f"task={task}")
    config = composed(*given, "augment.label_smoothing=0", "pretrained=null")
    try:
        found = DATASETS["table"](**config.data.options).train().target_kind
    except InputError as error:
        found = str(error).removeprefix(f"{table}: ")
    assert found[: len(kind)] == kind
