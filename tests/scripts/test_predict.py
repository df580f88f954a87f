"""scripts/predict.py predicts images in folders, as the task's own evaluation does, and draws what it found."""

import csv
import json
import signal
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
from pycocotools.coco import COCO
from skimage import data as photographs

import xcit
from data.views.detection import evaluation_view as whole_objects
from scripts.prediction_tables import FORMATS, ROW_GROUP
from xcit.encoded_image import EncodedImage
from xcit.evaluation.detection import CocoMetrics
from xcit.evaluation.segmentation import Segmentation
from xcit.models.dense.mask_rcnn import Detections
from xcit.orientation import EXIF_ORIENTATION
from xcit.prediction.detection_tiles import detect_in_tiles
from xcit.prediction.pictures import SIDE, ContactSheet
from xcit.prediction.predictor import Prediction
from xcit.storage import read_tensors, write_tensors
from xcit.tasks.detect import Detect
from xcit.tasks.load import load_task

from ..conftest import Result
from ..tasks.checkpoints import CLASSES, SIZE, write_checkpoint

Command = Callable[..., Result]
SCRIPT = "scripts/predict.py"
READABLE = ["a/same.png", "b/cmyk.jpg", "b/same.png", "deep.png", "turned.jpg"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with images of all kinds, one broken image and a text file."""
    folder = tmp_path / "photos"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    picture = Image.fromarray(photographs.astronaut()).resize((90, 70))
    picture.save(folder / "a" / "same.png")
    Image.fromarray(photographs.coffee()).resize((64, 80)).save(folder / "b" / "same.png")
    picture.convert("CMYK").save(folder / "b" / "cmyk.jpg")
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # stored turned by 90° to the left
    picture.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=exif, quality=95)
    (folder / "a" / "broken.jpg").write_bytes(b"\xff\xd8no image")
    (folder / "notes.txt").write_text("no image")
    return folder


def read(folder: Path) -> Any:
    return json.loads((folder / "predictions.json").read_text())


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def opened(photos: Path, name: str) -> Image.Image:
    return EncodedImage((photos / name).read_bytes(), name).rgb()


def check(result: Result) -> None:
    assert result.status == 0, result.stderr
    assert result.stderr.count("photos/a/broken.jpg: cannot be decoded") == 1
    assert result.stderr.count("photos: skipped 1 file that Pillow cannot read as an image (1 .txt)\n") == 1
    assert "out: predictions of 5 images, without 1 image that cannot be read or predicted\n" in result.stdout


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


def test_objects_are_those_of_the_evaluator_in_cocos_format(command: Command, photos: Path, tmp_path: Path) -> None:
    run = write_checkpoint(tmp_path / "run", "detect")
    check(command(SCRIPT, "photos", "checkpoint=run", "run_dir=out", "score=0.1"))
    coco = COCO(str(tmp_path / "out" / "predictions.json"))
    assert [entry["name"] for entry in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    task, preprocessing, classes, _ = load_task(run)
    assert isinstance(task, Detect)
    evaluator = CocoMetrics(task.predict, classes)
    objects = SimpleNamespace(
        size=None, boxes=np.zeros((0, 4)), labels=np.zeros(0), masks=[], crowd=[], areas=[], image_id=1
    )
    view = whole_objects(preprocessing, classes)
    for entry in coco.loadImgs(coco.getImgIds()):
        encoded = EncodedImage((photos / entry["file_name"]).read_bytes(), entry["file_name"])
        sample = view.sample(SimpleNamespace(image=encoded, target=objects, key="x"))  # type: ignore[arg-type]
        with torch.inference_mode():
            evaluator.update(view.to_device(view.collate([sample]), torch.device("cpu")))
        expected = evaluator.results[-1]
        found = coco.loadAnns(coco.getAnnIds(imgIds=entry["id"]))
        assert (entry["height"], entry["width"]) == expected.size
        assert len(found) == len(expected.scores) > 0
        for one, box, score, label, mask in zip(found, *expected[3:], strict=True):
            left, top, width, height = one["bbox"]
            assert [left, top, left + width, top + height] == pytest.approx(box.tolist(), abs=1e-3)
            assert (one["score"], one["category_id"]) == (pytest.approx(float(score)), int(label))
            assert one["segmentation"] == {"size": mask["size"], "counts": mask["counts"].decode()}
            assert one["area"] == coco.annToMask(one).sum()
    # Each overlay is upright and has the size of its image.
    for name in READABLE:
        with Image.open(tmp_path / "out" / "overlays" / f"{name}.png") as overlay:
            assert overlay.size == opened(photos, name).size
    assert opened(photos, "turned.jpg").size == (90, 70)


@pytest.mark.parametrize("num_classes", [3, 300])
def test_masks_are_those_of_the_evaluator(command: Command, photos: Path, tmp_path: Path, num_classes: int) -> None:
    names = tuple(f"class {number}" for number in range(num_classes))
    run = write_checkpoint(tmp_path / "run", "segment", names)
    check(command(SCRIPT, "photos", "checkpoint=run", "run_dir=out", "weights=raw"))
    task, preprocessing, _, _ = load_task(run, "raw")
    evaluator = task.evaluator()
    assert isinstance(evaluator, Segmentation)
    assert (
        files(tmp_path / "out" / "masks")
        == files(tmp_path / "out" / "overlays")
        == [f"{name}.png" for name in READABLE]
    )
    for row in read(tmp_path / "out"):
        picture = opened(photos, row["file"])
        image = preprocessing.normalize(preprocessing.pixels(picture)[None])
        truth = torch.zeros(picture.height, picture.width, dtype=torch.int64)
        expected = evaluator.add(image, truth).numpy()
        with Image.open(tmp_path / "out" / "masks" / f"{row['file']}.png") as mask:
            assert mask.mode == ("L" if num_classes == 3 else "I;16")
            assert np.array_equal(np.asarray(mask), expected)
        shares = {found["index"]: found["share"] for found in row["classes"]}
        assert shares == {label: (expected == label).mean() for label in np.unique(expected)}


def test_a_segmented_image_is_cut_into_tiles_at_its_full_size(command: Command, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", "segment")
    Image.fromarray(photographs.astronaut()).resize((150, 100)).save(tmp_path / "large.png")
    Image.fromarray(photographs.astronaut()).resize((60, 50)).save(tmp_path / "small.png")
    assert command(SCRIPT, "large.png", "small.png", "checkpoint=run", "run_dir=out", "tile=64").status == 0
    task, preprocessing, _, _ = load_task(tmp_path / "run")
    large, small = (opened(tmp_path, f"{name}.png") for name in ("large", "small"))
    whole = task.predict_classes(preprocessing([small]), (50, 60))  # type: ignore[operator]
    task.inference, task.window, task.stride = "slide", 64, 48  # type: ignore[assignment]
    tiles = task.predict_classes(preprocessing.at((100, 150))([large]), (100, 150))  # type: ignore[operator]
    for name, expected in (("large", tiles), ("small", whole)):
        with Image.open(tmp_path / "out" / "masks" / f"{name}.png.png") as mask:
            assert np.array_equal(np.asarray(mask), expected.numpy()), name


def bright(part: Image.Image) -> Detections:
    """A perfect detector of the bright boxes in an image, for each class of brightness; it sees only this part."""
    pixels, boxes = np.asarray(part.convert("L")), []
    for label, value in enumerate((200, 250)):
        rows, columns = np.nonzero(pixels == value)
        if rows.size:
            boxes.append([label, columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    table = torch.tensor(boxes, dtype=torch.float32).view(-1, 5)
    area = (table[:, 3] - table[:, 1]) * (table[:, 4] - table[:, 2])
    # Small parts have the best scores, so that a whole object does not stay because of its score.
    return Detections(table[:, 1:], 1 - area / 1e5, table[:, 0].long(), torch.ones(len(table), 28, 28))


@pytest.mark.parametrize("left", range(0, 260, 7))
def test_an_object_on_the_border_of_tiles_is_found_once_and_whole(left: int) -> None:
    pixels = np.zeros((150, 300), np.uint8)
    pixels[60:90, left : left + 30] = 250  # the borders are at 96, 192 and so on
    pixels[10:22, 100:112] = 200
    found = detect_in_tiles(bright, Image.fromarray(pixels), tile=96, overlap=32, nms_threshold=0.5)
    boxes = {(int(label), *box) for box, label in zip(found.boxes.tolist(), found.labels, strict=True)}
    assert boxes == {(1, left, 60, left + 30, 90), (0, 100, 10, 112, 22)}
    assert len(found.boxes) == len(found.masks) == 2
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_detection_in_tiles_runs_through_the_command(command: Command, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", "detect")
    Image.fromarray(photographs.astronaut()).resize((150, 100)).save(tmp_path / "large.png")
    assert command(SCRIPT, "large.png", "checkpoint=run", "run_dir=out", "tile=64", "overlap=16").status == 0
    found = read(tmp_path / "out")
    assert found["images"] == [{"id": 1, "file_name": "large.png", "height": 100, "width": 150}]
    assert len(found["annotations"]) > 8, "one image alone has at most 8"
    assert max(one["bbox"][0] + one["bbox"][2] for one in found["annotations"]) > 100


def test_an_image_that_does_not_fit_into_memory_is_left_out_and_tiles_are_proposed(
    command: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "run", "detect")
    predict, failures = Detect.predict, [torch.OutOfMemoryError("CUDA out of memory."), None]
    failures.insert(1, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."))

    def short(self: Detect, image: torch.Tensor, original: tuple[int, int]) -> Detections:
        error = failures.pop(0) if failures else None
        if error:
            raise error
        return predict(self, image, original)

    monkeypatch.setattr(Detect, "predict", short)
    result = command(SCRIPT, "photos", "checkpoint=run", "run_dir=out")
    assert result.status == 0, result.stderr
    remedy = "tile=64 without resolution= predicts it in parts"
    line = f"deep.png: its 90 × 70 pixels do not fit into memory; {remedy}; left out"
    assert line in result.stderr
    assert len(read(tmp_path / "out")["images"]) == 3


@pytest.mark.parametrize(("number", "images"), [(signal.SIGTERM, 3), (signal.SIGINT, 1)])
def test_a_signal_ends_the_command_with_what_was_predicted(
    command: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, images: int
) -> None:
    write_checkpoint(tmp_path / "run", "detect")
    predict = Detect.predict
    calls: list[int] = []

    def interrupted(*arguments: Any) -> Detections:
        calls.append(1)
        if len(calls) == images:
            signal.raise_signal(number)
            signal.raise_signal(number)  # as torchrun and terminals may do
        return predict(*arguments)

    monkeypatch.setattr(Detect, "predict", interrupted)
    result = command(SCRIPT, "photos", "checkpoint=run", "run_dir=out")
    line = f"error: stopped by {number.name}; out: predictions of {images} of 6 images"
    assert (result.status, result.stderr.splitlines()[-1]) == (1, line)
    written = read(tmp_path / "out")
    assert len(written["images"]) == images == len([name for name in files(tmp_path / "out") if "overlays/" in name])


def test_a_signal_during_the_last_prediction_stops_nothing(
    command: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "run", "detect")
    (photos / "z").mkdir()
    (photos / "z/broken.jpg").write_bytes(b"not an image")
    predict, calls = Detect.predict, []

    def interrupted(*arguments: Any) -> Detections:
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGTERM)
        return predict(*arguments)

    monkeypatch.setattr(Detect, "predict", interrupted)
    result = command(SCRIPT, "photos", "checkpoint=run", "run_dir=out")
    assert result.status == 0, result.stderr
    assert (
        result.stdout.splitlines()[-1]
        == "out: predictions of 5 images, without 2 images that cannot be read or predicted"
    )


def test_a_signal_before_the_first_prediction_writes_nothing(
    command: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "run", "classify")
    monkeypatch.setattr("xcit.tasks.load.load_task", lambda *_: signal.raise_signal(signal.SIGTERM))
    result = command(SCRIPT, "photos", "checkpoint=run", "run_dir=out")
    assert (result.status, result.stderr.splitlines()[-1]) == (1, "error: stopped by SIGTERM")
    assert not (tmp_path / "out").exists()


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
        (("broken.jpg", "checkpont=run"), "option=checkpont: unknown; did you mean checkpoint? (one of"),
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
