"""scripts/predict.py finds objects and segments as the tasks' own evaluators do, also in tiles of large images."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from skimage import data as photographs

from data.views.detection import evaluation_view as whole_objects
from xcit.encoded_image import EncodedImage
from xcit.evaluation.detection import CocoMetrics
from xcit.evaluation.segmentation import Segmentation
from xcit.models.dense.mask_rcnn import Detections
from xcit.prediction.detection_tiles import detect_in_tiles
from xcit.tasks.detect import Detect
from xcit.tasks.load import load_task

from ..tasks.checkpoints import CLASSES, write_checkpoint
from .predicting import READABLE, SCRIPT, Command, check, files, opened, read


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
