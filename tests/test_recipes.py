"""Every recipe in conf/recipe/ is a whole run in one file, trains, and does what its name says."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import xcit
from train import TABLES, check
from xcit.config import LoopConfig, TrainConfig
from xcit.config.composition import read_config
from xcit.engine.run_folder import RunFolder
from xcit.errors import InputError
from xcit.models.variants import VARIANTS
from xcit.storage import read_tensors

from .conftest import ROOT, TINY, Result, launch_forks
from .data.small_ade import write_small_ade, write_small_masks
from .data.small_coco import write_small_coco

Command = Callable[..., Result]

RECIPES = sorted(path.stem for path in (ROOT / "conf/recipe").glob("*.yaml"))
# What makes a run of seconds of any recipe: the digits, two layers, one update an epoch.
SMALL = (
    "+model.depth=2",
    "model.patch_size=8",
    "data.image_size=16",
    "train.global_batch_size=1024",
    "train.epochs=1",
    "train.precision=fp32",
    "resolutions=[16]",
    "pretrained=null",
    "run_dir=run",
)


def recipe_file(name: str) -> str:
    return (ROOT / f"conf/recipe/{name}.yaml").read_text()


def composed(*overrides: str) -> TrainConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return read_config(TrainConfig, compose("train", list(overrides)), TABLES)


def rows(path: Path, split: str) -> list[dict]:
    return [row for row in map(json.loads, path.read_text().splitlines()) if row["split"] == split]


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A teacher's weights for the digits, as timm would save them."""
    import timm

    torch.manual_seed(0)
    path = tmp_path / "teacher.pth"
    torch.save({"state_dict": timm.create_model("resnet10t", num_classes=10).state_dict()}, path)
    return path


@pytest.mark.parametrize("task", ["multilabel", "regress"])
def test_labels_are_not_smoothed_where_an_image_has_no_single_class(task: str) -> None:
    table = ("data=table", "data.path=labels.csv", "data.labels=[label]")
    assert composed(*table).augment.options["label_smoothing"] == 0.1
    for more in ([], ["augment=light"], ["recipe=folder_from_scratch"]):
        assert composed(*table, f"task={task}", *more).augment.options["label_smoothing"] == 0, more
    typed = composed(*table, f"task={task}", "augment.label_smoothing=0.2")
    with pytest.raises(InputError, match=r"augment.label_smoothing=0.2: must be 0 with task="):
        check(typed, torch.device("cpu"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_a_whole_run_in_one_file(recipe: str) -> None:
    text = recipe_file(recipe)
    content: dict[str, Any] = yaml.safe_load(text)
    *groups, last = content["defaults"]  # the task comes last, since its file may change the augmentation
    assert [key for group in groups for key in group] == ["/model", "/optim", "/augment", "/task"], "no other recipe"
    assert last == "_self_"
    assert content["train"].keys() - {"best_by", "updates"} == yaml.safe_load(recipe_file("digits"))["train"].keys()
    assert content.get("resolutions", [1]), "they follow from the training size if the recipe has none"
    head = text.partition("defaults:")[0].splitlines()
    assert head[0] == "# @package _global_"
    for start in ("# Source: ", "# Cost: ", "# Expect: "):
        assert sum(line.startswith(start) for line in head) == 1


@pytest.mark.parametrize(
    "recipes",
    [("paper_p16", "imagenet", "imagenet_shards"), ("transfer", "cifar10", "cifar100"), ("dino_continue", "images")],
)
def test_the_default_of_a_data_set_equals_the_recipe_that_it_repeats(recipes: tuple[str, ...]) -> None:
    """The files differ in their headers only, so that a change of one is not forgotten in the others."""
    first, *others = ("defaults:" + recipe_file(name).partition("defaults:")[2] for name in recipes)
    assert all(other == first for other in others)


def test_the_digits_choose_their_model_and_others_may_be_given() -> None:
    default = composed()
    assert (default.name, default.model.name, default.model.options["patch_size"]) == ("xcit_n12_digits", "xcit_n12", 8)
    assert composed("model=xcit_t12").model.options["patch_size"] == 16
    assert composed("model=timm", "model.name=resnet18").name == "resnet18_digits"
    assert composed("data=folder", "data.root=/mine").model.options["patch_size"] == 16


@pytest.mark.parametrize("name", xcit.list_models())
def test_the_configuration_takes_the_heads_of_the_variant(name: str) -> None:
    """conf/model/ says null, so that the number stands in one place."""
    assert "heads" not in yaml.safe_load((ROOT / f"conf/model/{name}.yaml").read_text())
    assert composed(f"model={name}").model.options["heads"] == VARIANTS[name]["heads"]
    assert composed(f"model={name}", "model.heads=2").model.options["heads"] == 2


def test_choices_on_top_of_a_recipe() -> None:
    config = composed("recipe=finetune_384", "task=distill", "optim=lamb", "augment=light", "model=xcit_s12")
    assert (config.task.name, config.optim.name, config.augment.repeats) == ("distill", "lamb", 1)
    assert (config.optim.lr, config.model.options["drop_path_rate"]) == (5e-6, 0.05)


@pytest.mark.parametrize(
    ("overrides", "resolutions"),
    [
        (["recipe=paper_p16"], [160, 192, 224, 256, 288, 320, 384]),
        (["recipe=paper_p16", "data.image_size=64"], [48, 64, 80, 96, 112]),
        (["recipe=paper_p16", "resolutions=[96,320]"], [96, 224, 320]),
        (["recipe=finetune_384"], [288, 320, 384, 448, 480, 544, 672]),
        (["model=timm", "model.name=cait_xxs24_224", "recipe=paper_p16"], [224]),
        ([], [24, 28, 32, 40, 48, 56, 64]),
    ],
)
def test_a_run_is_evaluated_at_the_given_resolutions_or_at_those_of_its_size(
    overrides: list[str], resolutions: list[int]
) -> None:
    size = ["data.image_size=224"] if "recipe=paper_p16" in overrides and "data.image_size=64" not in overrides else []
    assert check(composed(*size, *overrides), torch.device("cpu")) == resolutions


def test_the_recipe_on_the_page_composes(tmp_path: Path) -> None:
    page = (ROOT / "docs/recipes.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe/mine.yaml").write_text(block)
    mine = composed("data=flowers", "data.root=/mine", "recipe=mine", f"hydra.searchpath=[file://{tmp_path}]")
    assert (mine.name, mine.data.image_size, mine.train.epochs) == ("xcit_s12_flowers", 320, 50)
    assert (mine.optim.lr, mine.optim.weight_decay) == (1e-4, 0.05), "the rest is the group's"


def test_the_page_names_the_keys_of_train_that_a_recipe_must_give() -> None:
    page = (ROOT / "docs/recipes.md").read_text()
    (sentence,) = re.findall(r"Of `train` it\s+must give (.*?);", page, re.DOTALL)
    required = {name for name, field in LoopConfig.model_fields.items() if field.is_required()}
    assert set(re.findall(r"`(\w+)`", sentence)) == required | {"epochs", "updates"}


def test_a_configuration_that_was_saved_with_a_patch_size_at_its_root(command: Command, tmp_path: Path) -> None:
    """Earlier runs saved this key. Their config.yaml still runs, and the configuration in their checkpoints loads."""
    saved = shutil.copy(ROOT / "tests/files/config_with_root_patch_size.yaml", tmp_path / "config.yaml")
    content = OmegaConf.load(saved)
    del content["defaults"], content["hydra"]
    assert content.patch_size == 8
    before, now = (c.model_dump(exclude={"logger"}) for c in (read_config(TrainConfig, content, TABLES), composed()))
    assert before == now, "the demo has not changed, but for wandb's defaults"
    arguments = (f"--config-path={tmp_path}", "--config-name=config", "train.epochs=1", "resolutions=[32]")
    result = command("train.py", *arguments, "data.image_size=16", "train.global_batch_size=1024", "run_dir=run")
    assert result.status == 0, result.stderr
    assert "patch_size" not in yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    with pytest.warns(xcit.Notice, match=r"patch_size=8: has no effect; model\.patch_size=16 counts"):
        read_config(TrainConfig, OmegaConf.merge(content, {"model": {"patch_size": 16}}), TABLES)


def dense_data(recipe: str, folder: Path) -> list[str]:
    """A small data set for a recipe of detection or segmentation, and what else makes its run small."""
    small = ["model.depth=3", "data.image_size=32", "resolutions=[32]", "train.global_batch_size=4", "train.updates=1"]
    if recipe.startswith("coco"):
        write_small_coco(folder, images=6)
        return [*small, "data=coco", f"data.root={folder}", "task.channels=8", "task.proposals=8"]
    if recipe == "masks":
        write_small_masks(folder, images=6)
        return [*small, "data=masks", f"data.root={folder}", "data.classes=4", "data.val_fraction=0.2"]
    write_small_ade(folder, images=6, validation=1)
    return [*small, "data=ade20k", f"data.root={folder}", "task.channels=8"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains(command: Command, recipe: str, teacher: Path, tmp_path: Path) -> None:
    more = ["augment.image_sizes=[16]"] if recipe == "progressive" else []
    if recipe.startswith("distill"):
        more = ["task.teacher=resnet10t", f"task.teacher_weights={teacher}", "task.teacher_image_size=16"]
    if composed(f"recipe={recipe}", "pretrained=null").task.name == "dino":
        more = ["task.prototypes=16", "task.hidden_dim=8", "augment.local_crops=1", "augment.local_size=8"]
    if composed(f"recipe={recipe}", "pretrained=null").task.name in ("detect", "segment"):
        more = dense_data(recipe, tmp_path / "data")
    result = command("train.py", f"recipe={recipe}", *SMALL, *more)
    assert result.status == 0, result.stderr
    (measured,) = rows(tmp_path / "run" / "metrics.jsonl", "train")
    assert math.isfinite(measured["loss"])  # SimDINO's is negative


@pytest.mark.parametrize(
    "switch",
    [
        "patch_embed=linear",
        "attention=none",
        "attention=self_attention",
        "l2_norm=false",
        "temperature=false",
        "lpi=false",
        "position=learned",
        "position=none",
        "pool=average",
        "heads=2",
    ],
)
def test_every_ablation_trains_and_is_evaluated_at_other_sizes(command: Command, switch: str, tmp_path: Path) -> None:
    result = command("train.py", *TINY, "+model.depth=2", f"model.{switch}", "run_dir=run")
    assert result.status == 0, result.stderr
    losses = [row["loss"] for row in rows(tmp_path / "run" / "metrics.jsonl", "train")]
    assert losses[-1] < losses[0]
    result = command("eval.py", "checkpoint=run", "run_dir=eval", "resolutions=[8,24]")
    assert result.status == 0, result.stderr


def test_a_teacher_from_a_run_of_the_same_loop(command: Command, tmp_path: Path) -> None:
    timm = ("model=timm", "model.name=resnet10t", *TINY[1:])
    assert command("train.py", *timm, "run_dir=teacher").status == 0
    student = (*TINY, "+model.depth=2", "task=distill", "task.teacher=resnet10t", "task.teacher_weights=teacher")
    result = command("train.py", *student, "task.teacher_image_size=16", "run_dir=student", "task.kind=soft")
    assert result.status == 0, result.stderr
    content = read_tensors(tmp_path / "student" / "checkpoints" / "last.pt")
    assert not [key for key in content["task"] if not key.startswith("model.")], "the teacher is no part of the student"
    (tmp_path / "teacher" / "checkpoints" / "last.pt").unlink()
    assert command("eval.py", "checkpoint=student", "run_dir=eval").status == 0, "and evaluation does not need it"


def test_two_processes_distil_what_one_does(command: Command, teacher: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = xcit.create_model("xcit_n12", depth=2, patch_size=8, num_classes=7)
    torch.save(start.state_dict(), tmp_path / "start.pth")
    taught = ("task=distill", "task.teacher=resnet10t", f"task.teacher_weights={teacher}", "task.teacher_image_size=16")
    arguments = (*TINY, "+model.depth=2", "pretrained=start.pth", *taught)
    assert command("train.py", *arguments, "run_dir=one").status == 0
    result = launch_forks("train.py", *arguments, "run_dir=two", cwd=tmp_path)
    assert result.status == 0, result.stderr
    assert result.stderr.count("note: start.pth: its classifier of 7 classes is not loaded") == 1
    one, two = (rows(tmp_path / run / "metrics.jsonl", "train") for run in ("one", "two"))
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-4)


def test_a_teacher_that_is_not_one(command: Command, teacher: Path, tmp_path: Path) -> None:
    for given, message in (
        (["task.teacher=resnet10x"], "task.teacher=resnet10x: unknown; did you mean"),
        (
            ["task.teacher=resnet18", f"task.teacher_weights={teacher}"],
            f"task.teacher_weights={teacher}: belongs to another",
        ),
        (["task.teacher=resnet10t", "task.teacher_weights=nowhere"], "task.teacher_weights=nowhere: no such"),
        (["task.kind=warm"], "task.kind=warm: must be hard or soft"),
        (["task.alpha=1.5"], "task.alpha=1.5: must be a number from 0 to 1"),
    ):
        result = command("train.py", *TINY, "task=distill", *given, "run_dir=run")
        assert result.status == 2
        assert result.stderr.splitlines()[-1].startswith(f"error: {message}") or message in result.stderr
        assert "Traceback" not in result.stderr
        assert not (tmp_path / "run").exists()


def test_fine_tuning_at_a_higher_resolution_starts_from_the_run(command: Command, tmp_path: Path) -> None:
    small = (*TINY, "+model.depth=2", "train.epochs=2", "train.ema_decay=0.5")
    assert command("train.py", *small, "run_dir=low").status == 0
    result = command("train.py", *small, "data.image_size=24", "pretrained=low", "optim.lr=1e-6", "run_dir=high")
    assert result.status == 0
    (note,) = re.findall(r"note: low/checkpoints/last.pt: has raw weights and their moving average; .*", result.stderr)
    validated = read_tensors(tmp_path / "low/checkpoints/last.pt")["validated"]
    raw_is_better = validated["raw"] > validated["ema"]
    assert ("the raw weights are loaded" if raw_is_better else "the moving average is loaded") in note
    low = rows(tmp_path / "low" / "metrics.jsonl", "train")
    high = rows(tmp_path / "high" / "metrics.jsonl", "train")
    assert high[0]["loss"] < low[0]["loss"] - 0.2, "it begins with what the run had learned"


def test_images_grow_with_progressive_resolution(command: Command, tmp_path: Path) -> None:
    growing = (*TINY, "+model.depth=2", "augment.image_sizes=[8,16]", "train.epochs=2")
    assert command("train.py", *growing, "run_dir=run").status == 0
    result = command("train.py", *growing, "train.epochs=1", "run_dir=short")
    assert result.status == 2
    assert "augment.image_sizes" in result.stderr
    result = command("train.py", *growing, "augment.image_sizes=[4,16]", "run_dir=short")
    assert result.stderr.startswith("error: augment.image_sizes=4: the model does not take images of this size")


def test_frozen_parts_stay_as_they_were(command: Command, tmp_path: Path) -> None:
    frozen = (*TINY, "+model.depth=2", "train.freeze=[patch_embed,blocks.0]", "train.ema_decay=null")
    assert command("train.py", *frozen, "run_dir=one").status == 0
    assert command("train.py", *frozen, "train.epochs=2", "run_dir=two").status == 0
    one, two = (read_tensors(tmp_path / run / "checkpoints" / "last.pt")["task"] for run in ("one", "two"))
    same = {key for key in one if torch.equal(one[key], two[key])}
    frozen_keys = {key for key in one if key.startswith(("model.patch_embed.", "model.blocks.0."))}
    assert frozen_keys and frozen_keys <= same
    assert not [key for key in same - frozen_keys if not key.endswith("num_batches_tracked")]
    result = command("train.py", *TINY, "train.freeze=[patch_embd]", "run_dir=three")
    assert result.stderr == "error: train.freeze=patch_embd: not a part of the model; did you mean patch_embed?\n", (
        result.stderr
    )


@pytest.mark.parametrize("optim", [["optim=muon"], ["optim.layer_decay=0.7"]])
def test_a_resume_goes_on_as_if_nothing_had_happened(command: Command, optim: list[str], tmp_path: Path) -> None:
    """The optimizer's state and its groups are restored, in a run that was stopped after its first epoch."""
    small = (*TINY, "+model.depth=2", "model.drop_path_rate=0.2", "train.epochs=2", *optim)
    assert command("train.py", *small, "run_dir=whole").status == 0
    stopped = KeyboardInterrupt()
    save = RunFolder.save

    def save_and_stop(folder: RunFolder, *state: object, **best: bool) -> None:
        save(folder, *state, **best)
        raise stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "save", save_and_stop)
        assert command("train.py", *small, "run_dir=parts").status == 1
    assert command("train.py", *small, "run_dir=parts", "resume=auto").status == 0
    whole, parts = (read_tensors(tmp_path / run / "checkpoints" / "last.pt")["task"] for run in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_gradient_checkpointing_changes_nothing_but_the_memory(command: Command, tmp_path: Path) -> None:
    small = (*TINY, "+model.depth=2", "model.drop_path_rate=0.2")
    assert command("train.py", *small, "run_dir=kept").status == 0
    assert command("train.py", *small, "train.grad_checkpointing=true", "run_dir=again").status == 0
    kept, again = (read_tensors(tmp_path / run / "checkpoints" / "last.pt")["task"] for run in ("kept", "again"))
    assert all(torch.equal(kept[key], again[key]) for key in kept)
