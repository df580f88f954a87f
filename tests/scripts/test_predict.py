"""scripts/predict.py predicts images in folders: classes, labels and numbers, in every format, on a contact sheet."""

import csv
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

import xcit
from scripts.predict import listed
from scripts.prediction_tables import FORMATS, ROW_GROUP
from xcit.prediction.pictures import SIDE, ContactSheet
from xcit.prediction.predictor import Prediction
from xcit.storage import read_tensors, write_tensors
from xcit.tasks.load import load_task

from ..tasks.checkpoints import SIZE, write_checkpoint
from .predicting import READABLE, SCRIPT, Command, check, files, opened, read


@torch.inference_mode()
def test_classes_are_written_with_their_probabilities(command: Command, photos: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", "classify")
    result = command(SCRIPT, "photos", "checkpoint=run", "run_dir=out", "top=2", "batch_size=2", "overlays=true")
    check(result)
    task, preprocessing, classes, _ = load_task(tmp_path / "run")
    rows = read(tmp_path / "out")
    assert [row["file"] for row in rows] == ["deep.png", "turned.jpg", *READABLE[:3]]
    for row in rows:
        shares = task.model(preprocessing([opened(photos, row["file"])])).softmax(1)[0]
        best = shares.topk(2)
        assert [(found["name"], found["index"]) for found in row["classes"]] == [(classes[i], i) for i in best.indices]
        assert [found["probability"] for found in row["classes"]] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert f"│ {row['file']}" in result.stdout
    assert files(tmp_path / "out" / "overlays") == [f"{name}.png" for name in READABLE]
    # Without overlays, which is the default, there is only the list.
    assert (
        command(SCRIPT, "checkpoint=run", "photos", "--run_dir", "plain", "tile=64").stderr.count("tile=64: has no")
        == 1
    )
    assert files(tmp_path / "plain") == [*("config.yaml", "contact_sheet.png", "environment.json", "predictions.json")]


def test_files_are_sorted_by_folder_and_by_the_value_of_numbers(tmp_path: Path) -> None:
    names = ["2 b.png", "10 b.png", "img1.png", "img2.png", "img010.png", "img10.png", "img11.png", "x/1.png"]
    names += ["x2/a.png", "x10/a.png"]
    for name in reversed(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    in_order = [str(tmp_path / name) for name in names]
    assert listed([tmp_path]) == (str(tmp_path), in_order)
    assert listed([tmp_path / "**" / "*.png"])[1] == in_order
    given = [tmp_path / "img2.png", tmp_path / "img1.png"]
    assert listed(given)[1] == [str(path) for path in given], "files that are given one by one keep their order"


def test_predictions_come_in_every_format_and_agree(command: Command, photos: Path, tmp_path: Path) -> None:
    for task in ("classify", "detect", "segment"):
        run, out = write_checkpoint(tmp_path / task, task), tmp_path / f"out-{task}"
        result = command(SCRIPT, "photos", f"checkpoint={run}", f"run_dir={out}", "format=json,jsonl,csv,parquet")
        assert result.status == 0, result.stderr
        whole = read(out)
        lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
        rows = parquet.read_table(out / "predictions.parquet").to_pylist()
        with (out / "predictions.csv").open(newline="") as file:
            in_csv = list(csv.DictReader(file))
        assert [list(row.values()) for row in in_csv] == [[str(value) for value in row.values()] for row in rows]
        if task == "detect":
            assert [line["objects"] for line in lines] == [
                [found for found in whole["annotations"] if found["image_id"] == image["id"]]
                for image in whole["images"]
            ]
            in_json = [(found["category_id"], found["score"], found["bbox"]) for found in whole["annotations"]]
            box = ("left", "top", "width", "height")
            assert [(row["index"], row["score"], [row[side] for side in box]) for row in rows] == in_json
        else:
            assert lines == whole
            key = "probability" if task == "classify" else "share"
            in_json = [(row["file"], found["name"], found[key]) for row in whole for found in row["classes"]]
            assert [(row["file"], row["class"], row[key]) for row in rows] == in_json
        assert not list(out.glob(".*"))


def test_labels_and_numbers_are_written_in_their_own_units(command: Command, photos: Path, tmp_path: Path) -> None:
    expected = {"multilabel": "probability", "regress": "value"}
    for name, column in expected.items():
        run = write_checkpoint(tmp_path / name, name)
        result = command(SCRIPT, "photos/a", f"checkpoint={run}", f"run_dir=out-{name}", "format=json,csv")
        assert result.status == 0, result.stderr
        task, preprocessing, classes, _ = load_task(run)
        with torch.inference_mode():
            truth = task.predict(preprocessing([opened(photos, "a/same.png")]))[0]  # type: ignore[operator]
        (row,) = read(tmp_path / f"out-{name}")
        found = row["values" if name == "regress" else "classes"]
        assert [one[column] for one in found] == pytest.approx([float(truth[one["index"]]) for one in found], abs=1e-4)
        if name == "multilabel":
            above = (truth > task.thresholds).tolist()  # type: ignore[operator]
            assert row["found"] == [label for label, is_above in zip(classes, above, strict=True) if is_above]
            assert result.stdout.count(" *") == len(row["found"]) > 0
            for one in found:
                threshold = float(task.thresholds[one["index"]])  # type: ignore[index]
                sign, star = (">", " *") if one["name"] in row["found"] else ("≤", "  ")
                assert f"│ {one['probability']:.3f} {sign} {threshold:.3f}{star} │" in result.stdout


def test_images_of_other_channels_are_predicted_and_shown(command: Command, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "run", "classify") / "checkpoints" / "last.pt"
    content = dict(read_tensors(path))
    content["preprocessing"] |= {"channels": 1, "bit_depth": 16, "mean": [0.4], "std": [0.2]}
    for kind in ("task", "ema"):
        stem = "model.patch_embed.proj.0.0.weight"
        content[kind] = dict(content[kind]) | {stem: content[kind][stem][:, :1].clone()}
    write_tensors(path, content)
    ramp = np.linspace(0, 65535, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    result = command(SCRIPT, "deep.png", "checkpoint=run", "run_dir=out", "top=3")
    assert result.status == 0, result.stderr
    shares = xcit.Classifier(tmp_path / "run", top=3)(ramp[..., None])[0].probabilities
    assert [found["probability"] for found in read(tmp_path / "out")[0]["classes"]] == shares
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        shown = np.asarray(sheet.convert("L"))[10 + SIDE - SIZE : 10 + SIDE, 10 + (SIDE - SIZE) // 2 :][:, :SIZE]
    assert np.abs(shown.astype(int) - (ramp >> 8)).max() <= 1


def test_a_pattern_names_images(command: Command, photos: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", "classify")
    result = command(SCRIPT, "photos/**/same.*", "photos/deep.png", "checkpoint=run", "run_dir=out")
    assert result.status == 0, result.stderr
    assert [row["file"] for row in read(tmp_path / "out")] == ["a/same.png", "b/same.png", "deep.png"]
    assert command(SCRIPT, "photos/*.gif", "checkpoint=run").stderr == "error: photos/*.gif: matches no files\n"


def test_a_contact_sheet_shows_images_from_all_of_the_folder(
    command: Command, image_tree: Callable[..., Path], tmp_path: Path
) -> None:
    assert [number for number in range(150) if ContactSheet(150).takes(number)] == list(range(0, 150, 3))
    write_checkpoint(tmp_path / "run", "classify")
    image_tree("few", {"one": 3})
    assert command(SCRIPT, "few", "checkpoint=run", "run_dir=out").status == 0
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.size == (10 + 3 * (SIDE + 10), 10 + SIDE + 10 + 2 * 18)
        pixels = np.asarray(sheet)
    with Image.open(tmp_path / "few" / "one" / "001.png") as picture:
        left, bottom = 10 + SIDE + 10 + (SIDE - picture.width) // 2, 10 + SIDE
        shown = pixels[bottom - picture.height : bottom, left : left + picture.width]
        assert np.array_equal(shown, np.asarray(picture))
    assert command(SCRIPT, "few", "checkpoint=run", "run_dir=none", "contact_sheet=false").status == 0
    assert "contact_sheet.png" not in files(tmp_path / "none")


@pytest.mark.parametrize("name", ["json", "jsonl"])
def test_numbers_that_are_not_finite_are_null_in_json(tmp_path: Path, name: str) -> None:
    predictor = SimpleNamespace(sections=("",), fixed={}, columns={})
    file: Any = FORMATS[name](tmp_path, predictor)  # type: ignore[arg-type]
    row = {"file": "a.jpg", "values": [{"name": name, "value": float(name)} for name in ("nan", "inf", "0.5")]}
    file.add(Prediction({"": [row]}, row, [], [], [], {}, Image.Image))
    file.finish()
    found = json.loads((tmp_path / f"predictions.{name}").read_text(), parse_constant=pytest.fail)
    values = (found[0] if name == "json" else found)["values"]
    assert [each["value"] for each in values] == [None, None, 0.5]


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_predicted_is_on_disk_and_not_in_memory(tmp_path: Path, name: str) -> None:
    predictor = SimpleNamespace(sections=("",), fixed={}, columns={"file": str, "index": int})
    file: Any = FORMATS[name](tmp_path, predictor)  # type: ignore[arg-type]

    def add(start: int, number: int) -> None:
        for index in range(start, start + number):
            row = {"file": f"{index}.jpg", "index": index}
            file.add(Prediction({"": [row]}, row, [row], [], [], {}, Image.Image))

    add(0, ROW_GROUP)
    tracemalloc.start()
    add(ROW_GROUP, 2 * ROW_GROUP)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 100_000
    if name in ("jsonl", "csv"):  # a killed run leaves them
        assert len((tmp_path / f"predictions.{name}").read_text().splitlines()) >= 3 * ROW_GROUP
    file.finish()
    assert [path.name for path in tmp_path.iterdir()] == [f"predictions.{name}"]


def test_many_images_are_summed_up(command: Command, image_tree: Callable[..., Path], tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", "classify")
    image_tree("many", {"one": 21})
    result = command(SCRIPT, "many", "checkpoint=run", "run_dir=out")
    assert result.status == 0, result.stderr
    assert "most likely class" in result.stdout and "000.png" not in result.stdout
    assert len(read(tmp_path / "out")) == 21


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("broken.jpg",), "checkpoint: must be given: a run folder, a checkpoint or a name of published weights"),
        (("broken.jpg", "checkpoint=none"), "none: no such file or run folder, nor the name of published weights"),
        (("none", "checkpoint=run"), "none: no such file or folder"),
        (("empty", "checkpoint=run"), "empty: holds no images"),
        (("broken.jpg", "checkpoint=run"), "none of the images can be predicted"),
        (
            ("broken.jpg", "checkpoint=run", "run_dir=run"),
            "run_dir=run: is not empty (it has checkpoints); choose a new folder",
        ),
        (("broken.jpg", "checkpoint=run", "tile=8"), "tile=8: must be 0, for none, or at least 32"),
        (
            ("broken.jpg", "checkpoint=run", "overlap=64", "tile=64"),
            "overlap=64: must be at least 0 and less than tile=64",
        ),
        (("broken.jpg", "checkpoint=run", "score=2"), "score=2.0: must be 0 to 1"),
        (("broken.jpg", "checkpoint=run", "resolution=0"), "resolution=0: must be at least 1"),
        (("broken.jpg", "checkpoint=run", "format=xml"), "format=xml: unknown (one of json, jsonl, csv, parquet)"),
        (("broken.jpg", "checkpont=run"), "checkpont=run: unknown option; did you mean checkpoint? (one of"),
    ],
)
def test_a_mistake_ends_in_one_line_and_writes_nothing(
    command: Command, tmp_path: Path, arguments: tuple[str, ...], line: str
) -> None:
    write_checkpoint(tmp_path / "run", "classify")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    before = files(tmp_path)
    result = command(SCRIPT, *arguments)
    assert (result.status, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith(f"error: {line}")
    assert files(tmp_path) == before
    assert not (tmp_path / "runs" / "predict").exists() or not any((tmp_path / "runs" / "predict").iterdir())
