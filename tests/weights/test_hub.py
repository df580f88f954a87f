"""A saved model loads unchanged, has a model card, and can be pushed to the hub."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from huggingface_hub import HfApi, ModelCard
from timm.data import resolve_model_data_config

import xcit
from xcit.preprocessing import Preprocessing
from xcit.weights.loading import describe_input

from ..models.examples import same, tiny

pytestmark = pytest.mark.filterwarnings("error::xcit.Notice")

VARIED: list[dict[str, Any]] = [
    {},
    {"patch_size": 16, "image_size": 384, "in_chans": 1, "drop_path_rate": 0.1},
    {"num_classes": 0},
    {"patch_embed": "linear", "attention": "self_attention", "position": "learned", "image_size": 40},
    {"lpi": False, "l2_norm": False, "temperature": False, "position": "none", "pool": "average"},
    {"attention": "none", "class_depth": 1},
]


@pytest.mark.parametrize("options", VARIED, ids=str)
def test_a_saved_model_comes_back_to_the_bit(options: dict, tmp_path: Path) -> None:
    model = tiny(**options)
    model.save_pretrained(tmp_path / "saved")
    back = xcit.XCiT.from_pretrained(tmp_path / "saved")
    assert not back.training
    assert same(back.state_dict(), model.state_dict())
    assert back.init_options() == model.init_options()
    assert back.pretrained_cfg == model.pretrained_cfg
    images = torch.randn(2, options.get("in_chans", 3), 48, 40, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(back(images), model(images))


def test_the_folder_is_what_the_hubs_tools_read(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert same(safetensors.torch.load_file(tmp_path / "model.safetensors"), model.state_dict())
    config = json.loads((tmp_path / "config.json").read_text())
    assert {key: config[key] for key in ("dim", "depth", "heads", "patch_size", "num_classes")} == {
        "dim": 128,
        "depth": 2,
        "heads": 4,
        "patch_size": 8,
        "num_classes": 7,
    }
    assert all(isinstance(config[key], (int, float, str, bool)) for key in model.init_options())
    assert config.keys() - model.init_options().keys() == {"pretrained_cfg"}
    assert config["pretrained_cfg"]["input_size"] == [3, 224, 224]


def test_the_configuration_says_the_true_input_and_the_class_names_as_timms_do(tmp_path: Path) -> None:
    model = tiny(in_chans=1, num_classes=2)
    told = Preprocessing((48, 32), 1, 16, "squash", 0.9, "bilinear", (0.3,), (0.2,))
    describe_input(model, told, ["cat", "dog"])
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["label_names"] == ["cat", "dog"]
    cfg = config["pretrained_cfg"]
    assert (cfg["input_size"], cfg["mean"], cfg["std"], cfg["crop_pct"]) == ([1, 48, 32], [0.3], [0.2], 0.9)
    assert (cfg["interpolation"], cfg["crop_mode"], cfg["num_classes"]) == ("bilinear", "squash", 2)
    assert "Images: (B, 1, H, W)" in (tmp_path / "README.md").read_text()
    loaded, preprocessing, classes = xcit.load(tmp_path)
    assert (preprocessing, classes) == (told, ["cat", "dog"])
    data = resolve_model_data_config(loaded)
    assert (data["input_size"], data["crop_mode"], data["mean"]) == ((1, 48, 32), "squash", (0.3,))
    loaded.reset_classifier(3)  # type: ignore[operator]
    assert "label_names" not in loaded.pretrained_cfg  # type: ignore[operator]


def test_a_folder_of_an_earlier_commit_loads(tmp_path: Path) -> None:
    """Its config.json has the keyword arguments alone."""
    model = tiny(image_size=96)
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(model.init_options()))
    loaded, preprocessing, classes = xcit.load(tmp_path)
    assert (preprocessing.size, classes) == ((96, 96), None)
    assert same(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize("classes", [3, 0])
def test_a_new_classifier_is_part_of_the_configuration(classes: int, tmp_path: Path) -> None:
    model = tiny()
    other = tiny()
    model.reset_classifier(classes)
    model.save_pretrained(tmp_path)
    back = xcit.XCiT.from_pretrained(tmp_path)
    assert same(back.state_dict(), model.state_dict())
    assert back.num_classes == back.pretrained_cfg["num_classes"] == classes
    assert other.init_options()["num_classes"] == 7, "one model's configuration is not another's"


def test_a_saved_model_is_weights_for_load_weights(tmp_path: Path) -> None:
    saved, model = tiny(), xcit.create_model("xcit_n12", depth=2, patch_size=8, num_classes=7)
    saved.save_pretrained(tmp_path)
    xcit.load_weights(model, tmp_path)
    assert same(model.state_dict(), saved.state_dict())


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "model.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(xcit.InputError, match=r"model\.safetensors: damaged \(its content differs from its checksum\)"):
        xcit.XCiT.from_pretrained(tmp_path / "saved")


def test_weights_in_another_layout_of_memory_are_saved(tmp_path: Path) -> None:
    model = tiny().to(memory_format=torch.channels_last)
    model.save_pretrained(tmp_path)
    assert same(xcit.XCiT.from_pretrained(tmp_path).state_dict(), model.state_dict())


def test_other_options_may_be_asked_for_where_the_weights_allow_it(tmp_path: Path) -> None:
    saved = tiny()
    saved.save_pretrained(tmp_path)
    assert xcit.XCiT.from_pretrained(tmp_path, drop_path_rate=0.3).blocks[0].drop_path.rate == 0.3
    with pytest.warns(
        xcit.Notice,
        match="its classifier of 7 classes is not loaded; the model's classifier of 3 classes",
    ):
        back = xcit.XCiT.from_pretrained(tmp_path, num_classes=3)
    assert torch.equal(back.norm.weight, saved.norm.weight)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("options", [{"depth": 3}, {"patch_size": 16}, {"lpi": False}, {"position": "learned"}])
def test_weights_that_do_not_fit_are_refused(options: dict, strict: bool, tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    with pytest.raises(xcit.InputError, match="belongs to another architecture"):
        xcit.XCiT.from_pretrained(tmp_path, strict=strict, **options)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(xcit.InputError, match=r"holds neither .* nor model\.safetensors"):
        xcit.XCiT.from_pretrained(tmp_path)


RESULTS = [
    {"model": "xcit_n12", "checkpoint": "/home/me/last.pt", "weights": "ema", "resolution": 224, "top1": 69.87654},
    {"model": "xcit_n12", "checkpoint": "/home/me/last.pt", "weights": "ema", "resolution": 384, "loss": None},
]
RECIPE = "optim:\n  lr: 0.0005\ntrain:\n  epochs: 400\n"


def test_the_card_says_what_the_model_is_and_how_it_was_made(tmp_path: Path) -> None:
    model = tiny(temperature=False, image_size=96)
    told = {"repo_id": "me/mine", "name": "xcit_n12 on mine", "recipe": RECIPE, "results": RESULTS}
    model.save_pretrained(tmp_path, model_card_kwargs=told)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "xcit"
    assert card.data.pipeline_tag == "image-classification"
    assert "xcit" in card.data.tags
    assert "# xcit_n12 on mine\n" in card.text
    assert 'xcit.XCiT.from_pretrained("me/mine")' in card.text
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert f"{millions:.2f} M parameters" in card.text
    assert "96 × 96 pixels" in card.text
    for key, value in model.init_options().items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        assert f"| {key} | {shown} |" in card.text
    assert f"```yaml\n{RECIPE}```" in card.text
    assert "| model | weights | resolution | top1 | loss |" in card.text
    assert "| xcit_n12 | ema | 224 | 69.88 |  |" in card.text
    assert "/home/me" not in card.text


PLANTED = """\
run_dir: /home/me/planted
data:
  root: planted
  urls: ["/mnt/planted/{000..146}.tar", s3://planted/train]
  cache_dir: C:\\planted
pretrained: planted
task:
  teacher: resnet18
  teacher_weights: ~/planted.pth
later: ["https://me:planted@host/x", ../planted]
copied: /home/planted/xcit_nano_12_p16_224.pth
model: {name: xcit_n12, lpi: true}
augment: {rand_augment: rand-m9-mstd0.5-inc1, scale: [0.08, 1.0]}
optim: {lr: 0.00025, min_lr: 1.0e-06}
"""


def test_the_card_publishes_no_local_path(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path, model_card_kwargs={"recipe": PLANTED})
    text = (tmp_path / "README.md").read_text()
    assert "planted" not in text
    shown = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    told = yaml.safe_load(PLANTED)
    assert shown["data"]["urls"] == ["LOCAL", "LOCAL"] and shown["pretrained"] == "LOCAL"
    assert all(shown[key] == told[key] for key in ("model", "augment", "optim"))
    assert shown["task"]["teacher"] == "resnet18"


@pytest.mark.parametrize("name", ["fb_dist_in1k", "xcit_n12_p16.fb_in1k", "timm/resnet50.a1_in1k", "hf-hub:me/mine"])
def test_the_card_keeps_the_names_of_public_weights(name: str) -> None:
    assert f"pretrained: {name}\n" in tiny().generate_model_card(recipe=f"pretrained: {name}").text


def test_a_card_says_nothing_of_what_was_not_given(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "## Architecture" in text
    assert "## Results" not in text and "## Recipe" not in text


def test_a_push_uploads_weights_configuration_and_card(monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, Any] = {}

    def create_repo(self: HfApi, repo_id: str, **options: Any) -> Any:
        uploaded["created"] = repo_id, options["private"], self.token
        return type("Repo", (), {"repo_id": repo_id})

    def upload_folder(self: HfApi, *, repo_id: str, folder_path: Path, **options: Any) -> str:
        uploaded["to"] = repo_id, options["repo_type"]
        uploaded["files"] = sorted(path.name for path in Path(folder_path).rglob("*") if path.is_file())
        uploaded["state"] = safetensors.torch.load_file(Path(folder_path) / "model.safetensors")
        uploaded["config"] = json.loads((Path(folder_path) / "config.json").read_text())
        uploaded["card"] = (Path(folder_path) / "README.md").read_text()
        return "https://huggingface.co/me/mine/commit/1"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    model = tiny()
    model.push_to_hub("me/mine", private=True, token="t", model_card_kwargs={"repo_id": "me/mine", "recipe": RECIPE})
    assert uploaded["created"] == ("me/mine", True, "t")
    assert uploaded["to"] == ("me/mine", "model")
    assert uploaded["files"] == ["README.md", "config.json", "model.safetensors"]
    assert same(uploaded["state"], model.state_dict())
    assert uploaded["config"] == json.loads(json.dumps(model.hub_config()))
    assert 'from_pretrained("me/mine")' in uploaded["card"] and "epochs: 400" in uploaded["card"]
