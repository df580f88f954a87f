"""The contact sheet says all that was predicted for an image, as far as there is room."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage import data as photographs

from xcit.encoded_image import EncodedImage
from xcit.prediction.pictures import GAP, LINE, MOST_CAPTIONS, SIDE, ContactSheet
from xcit.prediction.predictor import Prediction
from xcit.prediction.predictors import PREDICTORS, Settings
from xcit.tasks.load import load_task

from ..tasks.checkpoints import write_checkpoint

PHOTO = Image.fromarray(photographs.astronaut()).resize((90, 70))


def predicted(run: Path, top: int) -> Prediction:
    loaded = load_task(run)
    settings = Settings(torch.device("cpu"), None, top=top, score=0.0, tile=0, overlap=0)
    predictor = PREDICTORS[loaded.name](loaded, settings)
    file = io.BytesIO()
    PHOTO.save(file, "PNG")
    with torch.inference_mode():
        return predictor.predict([predictor.prepare("photo.png", EncodedImage(file.getvalue(), "photo.png"), True)])[0]


def test_all_labels_above_their_thresholds_are_shown_whatever_was_asked_for(tmp_path: Path) -> None:
    prediction = predicted(write_checkpoint(tmp_path / "run", "multilabel"), top=1)
    scores = [float(score) for _, score in prediction.shown]
    assert sorted(name for name, _ in prediction.shown) == sorted(prediction.line["found"])
    assert len(prediction.shown) > len(prediction.found) == 1
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("task", ["classify", "regress", "detect", "segment"])
def test_the_likeliest_class_is_shown_or_all_numbers_and_classes(task: str, tmp_path: Path) -> None:
    prediction = predicted(write_checkpoint(tmp_path / "run", task), top=3)
    assert prediction.shown == (prediction.found[:1] if task == "classify" else prediction.found) != []


def test_captions_that_do_not_fit_are_counted() -> None:
    sheet = ContactSheet(2)
    sheet.add(PHOTO, [f"label {number}" for number in range(9)], "many.png")
    sheet.add(PHOTO, ["label 0"], "one.png")
    assert [captions for _, captions, _ in sheet.cells] == [["label 0", "label 1", "label 2", "+6"], ["label 0"]]
    assert sheet.draw().size == (GAP + 2 * (SIDE + GAP), GAP + SIDE + GAP + (MOST_CAPTIONS + 1) * LINE)
