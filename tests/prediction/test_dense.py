"""xcit.Detector and xcit.Segmenter predict as the evaluation of their tasks does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs

import xcit
from xcit.tasks.load import load_task

from ..tasks.checkpoints import write_checkpoint


@torch.inference_mode()
def test_images_of_every_type_have_the_objects_and_the_classes_of_the_task(tmp_path: Path) -> None:
    picture = Image.fromarray(photographs.astronaut()).resize((90, 70))
    picture.save(tmp_path / "one.png")
    images = [tmp_path / "one.png", np.asarray(picture), picture]
    detector = xcit.Detector(write_checkpoint(tmp_path / "detect", "detect"), device="cpu")
    task, preprocessing, _, _ = load_task(tmp_path / "detect")
    expected = task.predict(preprocessing([picture]), (70, 90))  # type: ignore[operator]
    for found in detector(images):
        assert len(found.boxes) > 0
        assert all(torch.equal(part, wanted) for part, wanted in zip(found, expected, strict=True))
    segmenter = xcit.Segmenter(write_checkpoint(tmp_path / "segment", "segment"), device="cpu")
    task, preprocessing, _, _ = load_task(tmp_path / "segment")
    classes = task.predict_classes(preprocessing([picture]), (70, 90)).numpy()  # type: ignore[operator]
    assert all(np.array_equal(found, classes) for found in segmenter(images))
    with pytest.raises(xcit.InputError, match="detect: was trained with task=detect, not with task=segment"):
        xcit.Segmenter(tmp_path / "detect")
