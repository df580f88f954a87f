"""scripts/export.py writes files that compute what the model computes, and keeps no other ones."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from skimage import data as photographs
from torch import Tensor, nn

import xcit
from data.datasets import DATASETS
from xcit.errors import InputError
from xcit.export import export
from xcit.export.check import Agreement, on_random_pixels, require_agreement
from xcit.export.files import steps
from xcit.export.formats import FORMATS
from xcit.export.program import Exportable, signature, sizes_to_check
from xcit.models.fast.exported import exported_form
from xcit.models.fast.inference import fuse_for_inference
from xcit.models.load import Loaded
from xcit.prediction.answers import Head
from xcit.prediction.classifier import Trained
from xcit.preprocessing import Preprocessing

from ..conftest import ROOT, TINY, Result, launch
from ..tasks.checkpoints import CLASSES, write_checkpoint

Command = Callable[..., Result]
SCRIPT = "scripts/export.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of the smallest model on the digits."""
    folder = tmp_path_factory.mktemp("trained")
    done = launch("train.py", *TINY, "model.depth=1", "run_dir=run", cwd=folder)
    assert done.status == 0, done.stderr
    return str(folder / "run")


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)


def check_description(path: Path, checkpoint: str) -> dict[str, Any]:
    """What the JSON file says is what the checkpoint says."""
    described = json.loads(path.read_text())
    _, preprocessing, classes = xcit.load(checkpoint)
    assert described["classes"] == classes == [str(digit) for digit in range(10)]
    assert Preprocessing.from_dict(described["preprocessing"]) == preprocessing
    assert (described["input"]["shape"].count("height"), described["output"]["shape"]) == (1, ["batch", 10])
    found = described["check"]
    assert (found["sizes"], found["batch_sizes"]) == ([[16, 16], [32, 16], [9, 17]], [1, 3])
    assert found["images"] == found["same_top1"] == 20
    assert found["top1_before"] == found["top1_after"]
    assert 0 < found["difference"] < found["tolerance"] == 1e-4
    return described


@torch.inference_mode()
def test_onnx_runtime_gives_the_logits_of_the_model_from_pixels(
    command: Command, checkpoint: str, tmp_path: Path
) -> None:
    result = command(SCRIPT, f"checkpoint={checkpoint}", "run_dir=out", "images=20")
    assert result.status == 0, result.stderr
    assert "20 images: the same class for 20\n" in result.stdout
    assert "note: the export is compared on 20 images, which say little; 100 or more are better\n" in result.stderr
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["config.yaml", "environment.json", "model.json", "model.onnx"]
    described = check_description(tmp_path / "out" / "model.json", checkpoint)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.shape) == (described["input"]["name"], described["input"]["shape"])
    assert (given.name, given.shape) == (described["output"]["name"], described["output"]["shape"])
    model, preprocessing, _ = xcit.load(checkpoint)
    images = pixels(5, 40, 27, 3)
    expected = model(preprocessing.normalize(torch.from_numpy(images)))
    np.testing.assert_allclose(session.run(None, {"pixels": images})[0], expected, rtol=1e-4, atol=1e-5)


def test_from_python_the_source_says_how_outputs_are_read(tmp_path: Path) -> None:
    """A model that is loaded already does not, so it needs a head; without one it would pass for a classifier."""
    run = write_checkpoint(tmp_path / "run", "regress")
    described = export(run, tmp_path / "regress.pt2", "torch")
    assert described["answers"] == xcit.Classifier(run).head.as_dict()
    assert (described["answers"]["formula"], described["checkpoint"]) == ("output * std + mean", str(run))
    refused = tmp_path / "refused.pt2"
    with pytest.raises(InputError, match=r"^head: must be given with a loaded model; or give the run folder"):
        export(xcit.load(run), refused, "torch")
    with pytest.raises(InputError, match=r"^head: is read from the source; leave it out"):
        export(run, refused, "torch", head=Head("class", "abc"))
    with pytest.raises(InputError, match=r"^weights=raw: is for a source that is not loaded yet"):
        export(xcit.load(run), refused, "torch", weights="raw")
    with pytest.raises(InputError, match="detect: was trained with task=detect, not with one of classify"):
        export(write_checkpoint(tmp_path / "detect", "detect"), refused, "torch")
    assert not refused.exists()


@torch.inference_mode()
def test_a_program_of_torch_without_preprocessing(command: Command, checkpoint: str, tmp_path: Path) -> None:
    arguments = "format=torch", "preprocessing=false", "weights=raw", "images=20", "run_dir=out"
    result = command(SCRIPT, "--checkpoint", checkpoint, *arguments)
    assert result.status == 0, result.stderr
    described = check_description(tmp_path / "out" / "model.json", checkpoint)
    assert described["input"]["shape"] == ["batch", 3, "height", "width"]
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    model, _, _ = xcit.load(checkpoint, "raw")
    images = torch.randn(1, 3, 50, 24)
    torch.testing.assert_close(program(images), model(images))


def test_int8_says_what_it_costs(command: Command, checkpoint: str, tmp_path: Path) -> None:
    result = command(SCRIPT, f"checkpoint={checkpoint}", "quantize=int8", "run_dir=out", "images=64", "tolerance=0.5")
    assert result.status == 0, result.stderr
    assert "note: int8 is calibrated and compared on 64 images, which say little" in result.stderr
    described = json.loads((tmp_path / "out" / "model.json").read_text())
    found = described["check"]
    assert described["precision"] == "int8"
    assert f"top-1: {found['top1_before']:.2f} % before, {found['top1_after']:.2f} % after\n" in result.stdout
    assert 1e-4 < found["difference"] < 0.5
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 0.5 * 4 * parameters(checkpoint)


def parameters(checkpoint: str) -> int:
    return sum(parameter.numel() for parameter in xcit.load(checkpoint).model.parameters())


def test_a_wrong_export_is_refused_and_nothing_is_kept(
    command: Command, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = FORMATS["torch"]

    def write(exportable: Exportable, *rest: Any) -> None:
        with torch.no_grad():
            exportable.model.get_submodule("norm").bias += 1e-3  # type: ignore[operator]
        right.write(exportable, *rest)

    monkeypatch.setitem(FORMATS, "torch", right._replace(write=write))
    arguments = f"checkpoint={checkpoint}", "format=torch", "run_dir=out", "images=4"
    result = command(SCRIPT, *arguments)
    assert result.status == 1
    assert result.stderr.count("error: ") == 1
    assert "of the largest one, more than tolerance=0.0001; it is not kept\n" in result.stderr
    assert not list(tmp_path.iterdir())
    tolerated = command(SCRIPT, *arguments[:-1], "tolerance=0.5", "images=100")
    assert (tolerated.status, tolerated.stderr.count("which say little")) == (0, 0)


def test_without_the_images_of_the_run_a_line_says_so(
    command: Command, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise InputError("data.root=gone: no such folder")

    monkeypatch.setattr(DATASETS["digits"], "val", gone)
    result = command(SCRIPT, f"checkpoint={checkpoint}", "format=torch", "run_dir=out")
    assert result.status == 0, result.stderr
    assert "note: the images of the run are not at hand: data.root=gone: no such folder\n" in result.stderr
    assert "note: no images: only random pixels are compared; data=folder data.root=FOLDER names" in result.stderr
    assert json.loads((tmp_path / "out" / "model.json").read_text())["check"]["images"] == 0
    quantized = command(SCRIPT, f"checkpoint={checkpoint}", "quantize=int8", "run_dir=int8")
    assert quantized.status == 2
    assert "error: quantize=int8: needs images" in quantized.stderr
    assert not (tmp_path / "int8").exists()


def test_bad_input_is_one_line(
    command: Command, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-compiler")
    for arguments, message in (
        ((), "checkpoint: must be given"),
        ((f"checkpoint={checkpoint}", "format=tensorrt"), "format=tensorrt: unknown (one of onnx, torch, aoti)"),
        ((f"checkpoint={checkpoint}", "fromat=onnx"), "fromat=onnx: unknown option; did you mean format?"),
        ((f"checkpoint={checkpoint}", "quantize=int4"), "quantize=int4: must be none or int8"),
        ((f"checkpoint={checkpoint}", "quantize=int8", "format=torch"), "quantize=int8: is for format=onnx"),
        ((f"checkpoint={checkpoint}", "tolerance=2"), "tolerance=2.0: must be greater than 0 and less than 1"),
        ((f"checkpoint={checkpoint}", "images=0"), "images=0: must be at least 1"),
        ((f"checkpoint={checkpoint}", "format=aoti"), "format=aoti: needs a C++ compiler, and there is no no-compiler"),
        ((f"checkpoint={checkpoint}", "data=folder"), "data.root: must be given"),
        # Text that Hydra's grammar cannot read is quoted, as it is for train.py.
        (
            (f"checkpoint={checkpoint}", "data=folder", "data.root=/my data ä/Fotos (1)"),
            "/my data ä/Fotos (1): no such folder (data.root)",
        ),
        ((f"checkpoint={checkpoint}", "data.rot=a"), "data.rot: unknown key; did you mean data.root?"),
        ((f"checkpoint={checkpoint}", "data=folders"), "data=folders: unknown; did you mean folder?"),
        (("checkpoint=runs/none",), "runs/none: "),
    ):
        result = command(SCRIPT, *arguments)
        assert result.status == 2, arguments
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stderr.startswith(f"error: {message}"), result.stderr
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(size=(16, 24), channels=1, bit_depth=16, mean=(0.5,), std=(0.2,)),
        Preprocessing(size=(24, 16), channels=5, mean=(0.5,) * 5, std=(0.2,) * 5, value_range=(-1.0, 3.0)),
    ],
)
def test_pixels_of_any_kind_are_normalized_inside(preprocessing: Preprocessing, tmp_path: Path) -> None:
    ablated = {"l2_norm": False, "temperature": False} if preprocessing.value_range else {}
    options = {"patch_size": 8, "depth": 1, "in_chans": preprocessing.channels, "num_classes": 3, **ablated}
    model = xcit.create_model("xcit_n12", **options).eval()
    assert isinstance(model, xcit.XCiT)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gamma" in name or "temperature" in name:  # they are all 1 before training
                parameter.uniform_(0.5, 2)
    exportable = Exportable(exported_form(model), preprocessing, True)
    signed = signature(exportable, 8)
    assert signed.input["shape"][-1] == preprocessing.channels
    FORMATS["torch"].write(
        exportable, exportable.random(2, sizes_to_check(preprocessing.size, 8)[-1]), signed, tmp_path / "a.pt2"
    )
    reference = Exportable(fuse_for_inference(model), preprocessing, True)
    agreement, _ = on_random_pixels(reference, FORMATS["torch"].open(tmp_path / "a.pt2"), 8)
    assert agreement.difference < 1e-5


def test_a_difference_at_one_size_or_an_output_that_is_no_number_is_found() -> None:
    reference = Exportable(Mean(), Preprocessing(size=(16, 16)), True)

    def run_wrongly_at(size: tuple[int, int], value: float) -> Callable[[Tensor], Tensor]:
        return lambda images: reference(images) + (value if images.shape[1:3] == size else 0)

    for size in sizes_to_check((16, 16), 8):
        for value in (0.5, float("nan")):
            agreement, _ = on_random_pixels(reference, run_wrongly_at(size, value), 8)
            with pytest.raises(InputError, match="is not kept"):
                require_agreement(agreement, Agreement(), 1e-3, int8=False)
    agreement, _ = on_random_pixels(reference, reference, 8)
    require_agreement(agreement, Agreement(), 1e-3, int8=False)
    with pytest.raises(InputError, match=r"another class than the model for 2 of 4 images, more than tolerance=0\.4"):
        require_agreement(agreement, Agreement(Head("class", "abc"), images=4, same=2), 0.4, int8=True)


def test_labels_are_compared_at_their_thresholds_and_numbers_by_their_size() -> None:
    expected, found = torch.tensor([[2.0, -1.0], [1.0, 3.0]]), torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    one_differs = {"class": 2, "classes": 1, "values": 0}  # the largest output stays the largest one
    for kind, same in one_differs.items():
        agreement = Agreement(Head(kind, "ab", thresholds=torch.tensor([0.5, 0.6])))
        agreement.add(expected, found)
        agreement.count(expected, found, None)
        assert (agreement.images, agreement.same) == (2, same)
        if kind == "class":
            require_agreement(Agreement(difference=9.0), agreement, 0.05, int8=True)
        else:
            said = {
                "classes": "other labels than the model for 1 of 2 images",
                "values": "differ from the model's by 6.7",
            }
            with pytest.raises(InputError, match=said[kind]):
                require_agreement(Agreement(), agreement, 0.05, int8=True)
    close = Agreement(Head("classes", "ab", thresholds=torch.tensor([0.5, 0.8])))  # sigmoid(1) = 0.73
    close.count(expected, found, None)
    assert close.same == 2


class Mean(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def test_the_steps_say_how_an_image_is_resized() -> None:
    said = "\n".join(steps(Preprocessing(size=(224, 160), resize="letterbox", crop_ratio=0.5, bit_depth=12), True))
    assert "3 channels with values from 0 to 4095" in said
    assert "until it fits into 448 × 320 pixels (height × width)" in said
    assert "cut out the center of 224 × 160 pixels; pad with the mean" in said


def test_the_example_of_the_docs_gives_the_class_of_the_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Photographs of several shapes, one of them stored turned; the model takes images that are not square."""
    monkeypatch.chdir(tmp_path)
    preprocessing = Preprocessing(size=(48, 64), crop_ratio=0.9)
    torch.manual_seed(0)
    model = xcit.create_model("xcit_n12", dim=32, depth=1, heads=2, patch_size=8, num_classes=3).eval()
    export(Loaded(model, preprocessing, list(CLASSES)), Path("exported/model.onnx"), head=Head("class", CLASSES))
    [example] = re.findall(r"```python\n(import json\n.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)
    classifier = xcit.Classifier(Trained(model, preprocessing, Head("class", CLASSES)))
    turned = Image.Exif()
    turned[0x0112] = 6
    for photo in (photographs.astronaut(), photographs.coffee(), photographs.coffee().swapaxes(0, 1)):
        for exif in (Image.Exif(), turned):
            Image.fromarray(photo).save("photo.jpg", exif=exif)
            found: dict[str, Any] = {}
            exec(example, found)
            assert (found["pixels"] == classifier.pixels("photo.jpg").numpy()).all()
            [answer] = classifier("photo.jpg")
            assert capsys.readouterr().out == f"{answer.names[0]}\n"
            np.testing.assert_allclose(found["logits"][0], answer.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # the C++ compiler takes most of a minute
@torch.inference_mode()
def test_aotinductor_gives_the_logits_of_the_model(command: Command, checkpoint: str, tmp_path: Path) -> None:
    result = command(SCRIPT, f"checkpoint={checkpoint}", "format=aoti", "run_dir=out", "images=20")
    assert result.status == 0, result.stderr
    check_description(tmp_path / "out" / "model.json", checkpoint)
    model, preprocessing, _ = xcit.load(checkpoint)
    images = torch.from_numpy(pixels(5, 40, 27, 3))
    found = FORMATS["aoti"].open(tmp_path / "out" / "model.pt2")(images)
    torch.testing.assert_close(found, model(preprocessing.normalize(images)), rtol=1e-4, atol=1e-5)
