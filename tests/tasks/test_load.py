"""load_task gives the trained task of a run from its path alone."""

from pathlib import Path

import pytest
import torch

import xcit
from xcit.engine.task import Target
from xcit.errors import InputError
from xcit.storage import read_tensors, write_tensors
from xcit.tasks.load import load_task
from xcit.tasks.segment import Segment

from ..weights.authors_dense import SURFACES, authors_content, scattered
from .checkpoints import CLASSES, OPTIONS, SIZE, new_model, new_task, write_checkpoint

pytestmark = pytest.mark.filterwarnings("error::xcit.Notice")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["raw", "ema"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_gives_its_task_with_the_weights_of_either_kind(tmp_path: Path, name: str, kind: str) -> None:
    run = write_checkpoint(tmp_path / "run", name)
    task, preprocessing, classes, loaded = load_task(run, kind)
    assert (classes, loaded, task.training) == (list(CLASSES), name, False)
    assert preprocessing.resize == ("shortest" if name in ("detect", "segment") else "crop")
    assert preprocessing.size[0] == SIZE
    # The same as the task that trained, within the rounding of the folded backbone.
    trained = new_task(name).eval()
    trained.load_state_dict(read_tensors(run / "checkpoints" / "last.pt")[{"raw": "task"}.get(kind, kind)])
    images = torch.randn(1, 3, SIZE, SIZE)
    maps, wanted = (network.model(images) for network in (task, trained))
    torch.testing.assert_close(maps, wanted, atol=1e-4, rtol=1e-3)


def test_the_better_weights_are_taken_and_options_that_an_older_run_lacks_have_their_defaults(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "run", "segment") / "checkpoints" / "last.pt"
    content = dict(read_tensors(path))
    del content["identity"]["config"]["model"]["patch_size"]  # 16, which these weights are not for
    write_tensors(path, content)
    with pytest.raises(xcit.InputError, match=r"last\.pt: belongs to another architecture"):
        load_task(path)
    content["identity"]["config"]["model"]["patch_size"] = 8
    content["validated"] = {"raw": 50.0, "ema": 49.0}
    content["identity"]["config"]["task"] = {"name": "segment", "channels": 16}
    write_tensors(path, content)
    key = "decode_head.conv_seg.bias"
    assert torch.equal(load_task(path).task.state_dict()[key], content["task"][key])
    assert not torch.equal(content["ema"][key], content["task"][key])


def test_weights_of_a_model_alone_give_a_classifier(tmp_path: Path) -> None:
    model = new_model(3)
    model.save_pretrained(tmp_path / "saved")
    loaded = load_task(tmp_path / "saved")
    assert (loaded.name, loaded.classes) == ("classify", ["0", "1", "2"])
    model.reset_classifier(0)
    model.save_pretrained(tmp_path / "backbone")
    with pytest.raises(xcit.InputError, match="backbone: is a backbone without a classifier"):
        load_task(tmp_path / "backbone")


def test_a_published_segmenter_is_known_by_the_name_of_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = scattered(Segment(xcit.create_model("xcit_t12", num_classes=0), Target("mask", SURFACES)))
    path = tmp_path / "sem_fpn_xcit_tiny_12_p16.pth"
    torch.save(authors_content(task), path)
    loaded = load_task(path)
    assert (loaded.name, loaded.classes) == ("segment", list(SURFACES))
    assert (loaded.preprocessing.resize, loaded.preprocessing.size) == ("shortest", (512, 2048))
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.task.predict(image, (64, 96)), task.predict(image, (64, 96)), atol=1e-4, rtol=1e-3
        )

    path.rename(tmp_path / "mine.pth")
    with pytest.raises(InputError, match=r"mine\.pth: does not say which model its weights are for"):
        load_task(tmp_path / "mine.pth")


def test_published_weights_have_imagenets_classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(
        {"model": xcit.create_model("xcit_n12").state_dict()}, tmp_path / "checkpoints" / "xcit_nano_12_p16_224.pth"
    )
    loaded = load_task("xcit_nano_12_p16_224")
    assert (loaded.name, loaded.preprocessing.size, loaded.classes[1]) == (
        *("classify", (224, 224)),
        "goldfish, Carassius auratus",
    )
