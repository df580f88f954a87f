"""timm's models train in the same loop, and the same sweep evaluates them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from timm.layers import DropPath

import xcit
from xcit.storage import write_safetensors
from xcit.weights.sources import HUB_FILE

from .conftest import TINY, Result

Command = Callable[..., Result]
RUN = (*TINY[1:], "run_dir=run")


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "test_byobnet"])
def test_a_timm_model_trains_and_is_evaluated_across_resolutions(command: Command, name: str) -> None:
    result = command("train.py", "model=timm", f"model.name={name}", *RUN, "data.image_size=32", "resolutions=[32,48]")
    assert result.status == 0, result.stderr
    result = command("eval.py", "checkpoint=run", "run_dir=eval", "resolutions=[64]")
    assert result.status == 0, result.stderr


def test_a_model_of_one_size_refuses_other_resolutions(command: Command, tmp_path: Path) -> None:
    cait = ("model=timm", "model.name=cait_xxs24_224", *RUN, "data.image_size=32")
    result = command("train.py", *cait, "resolutions=[32,48]")
    assert result.status == 2
    assert result.stderr.startswith("error: resolutions=48: the model does not take images of this size (Input height")
    assert not (tmp_path / "run").exists()


def test_stochastic_depth_defaults_to_the_models_own_rate() -> None:
    def rates(**given: float) -> set[float]:
        model = xcit.create_model("timm", name="swin_tiny_patch4_window7_224", num_classes=0, **given)
        return {module.drop_prob for module in model.modules() if isinstance(module, DropPath)}

    assert max(rates()) == pytest.approx(0.1)
    assert not rates(drop_path_rate=0.0)


def test_a_model_with_two_classifiers_trains(command: Command) -> None:
    small = ("model.name=deit_tiny_distilled_patch16_224", *RUN, "data.image_size=32", "resolutions=[32]")
    result = command("train.py", "model=timm", *small)
    assert result.status == 0, result.stderr


def test_a_name_that_timm_does_not_know_is_refused(command: Command) -> None:
    result = command("train.py", "model=timm", "model.name=resnet5O", *RUN)
    assert (result.status, result.stderr.count("\n")) == (2, 1)
    assert "model.name=resnet5O: unknown; did you mean resnet50" in result.stderr
    result = command("train.py", "model=timm", *RUN)
    assert (result.status, result.stderr) == (2, "error: model.name: must be given\n")


def test_published_weights_of_timm_need_a_network(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for arguments in (
        ("train.py", "model=timm", "model.name=resnet18", "pretrained=true", *RUN),
        ("eval.py", "checkpoint=timm/resnet18.a1_in1k", "data=digits"),
    ):
        result = command(*arguments)
        assert (result.status, result.stderr.count("\n")) == (2, 1), result.stderr
        assert "resnet18" in result.stderr


def test_the_name_of_timms_weights_gives_the_model(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """eval.py needs no model= for weights with a timm name."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.head.weight)
    write_safetensors(tmp_path / HUB_FILE, model.state_dict())
    monkeypatch.setattr("xcit.weights.sources.hf_hub_download", lambda *_: str(tmp_path / HUB_FILE))
    name = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    result = command(
        "eval.py", f"checkpoint={name}", "data=digits", "data.image_size=224", "resolutions=[96]", "run_dir=eval"
    )
    assert result.status == 0, result.stderr
    assert "vit_tiny_patch16_224.augreg_in21k_ft_in1k on digits" in result.stdout
