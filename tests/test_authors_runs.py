"""The paper's recipes use the numbers of the authors' runs.

tests/files/authors_runs.json holds what the authors' code gives with timm 0.4.9, the version that it asks for. The
numbers were made by that code, not by ours.
"""

import json
import random
import re
from typing import Any

import pytest
import torch
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing

import data.transforms
import xcit
from data.samplers import TrainBatches
from data.views import VIEWS
from data.views.labelled_crop import RandomLabelledCrop
from train import TABLES
from xcit.config import ScaledTrainConfig, TrainConfig
from xcit.config.composition import read_config
from xcit.engine.optimizer import make_optimizer, peak_lr
from xcit.engine.schedule import make_schedule
from xcit.preprocessing import Preprocessing

from .conftest import ROOT
from .test_recipes import composed

THEIRS: dict[str, Any] = json.loads((ROOT / "tests/files/authors_runs.json").read_text())
IMAGES = 1_281_167
PAPER = ["paper_p16", "paper_p8", "imagenet", "imagenet_shards", "distill_hard", "distill_soft"]
# Recipes that change the paper's in one thing, and the keys that they change.
VARIED = {
    "low_resolution": {"data.image_size", "model.image_size"},
    "progressive": {"augment.image_sizes"},
    "muon": {"optim.name", "optim.options"},
}


def config_of(recipe: str, *more: str) -> ScaledTrainConfig:
    return composed("model=xcit_s12", "data=imagenet", "data.root=/x", f"recipe={recipe}", *more).scaled(IMAGES, 8)


def learning_rates(config: ScaledTrainConfig) -> list[float]:
    """The learning rate of every epoch; it must be the same at its first, second and last update."""
    peak = peak_lr(config.optim.lr, config.train.global_batch_size)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    length = THEIRS["updates_per_epoch"]
    schedule = make_schedule(
        optimizer, num_updates=400 * length, updates_per_epoch=length, **config.optim.schedule_options
    )
    rates = []
    for epoch in range(400):
        of_epoch = set()
        for update in (0, 1, length - 1):
            schedule.step_update(epoch * length + update)
            of_epoch.add(optimizer.param_groups[0]["lr"])
        assert len(of_epoch) == 1
        rates.append(of_epoch.pop())
    return rates


@pytest.mark.parametrize("recipe", [*PAPER, *VARIED])
def test_learning_rate_of_every_epoch(recipe: str) -> None:
    rates = learning_rates(config_of(recipe))
    assert rates == pytest.approx(THEIRS["learning_rates"], rel=1e-12)
    assert rates[:3] == pytest.approx([1e-6, 1e-6, 2.008e-4]), "the schedule lags by one epoch"


def their_name(name: str) -> str:
    """The authors' name of one of our parameters. They keep queries, keys and values of class attention together."""
    return re.sub(r"^(cls_attn_blocks\.\d\.attn\.)[qkv]\.", r"\1qkv.", name.replace("pos_embed.", "pos_embeder."))


@pytest.mark.parametrize("recipe", [*PAPER, "finetune_384"])
def test_parameters_with_weight_decay(recipe: str) -> None:
    with torch.device("meta"):
        model = xcit.create_model("xcit_s12")
    optimizer = make_optimizer(model, lr=1e-3, **config_of(recipe).optim.optimizer)
    names = {id(p): their_name(name) for name, p in model.named_parameters()}
    decayed = [p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]]
    assert {names[id(p)] for p in decayed} == set(THEIRS["decayed"])
    assert sum(p.numel() for p in decayed) == THEIRS["decayed_values"]


def test_epoch_has_as_many_updates() -> None:
    config = config_of("paper_p16")
    batches = TrainBatches(
        IMAGES, config.train.images_per_pass(8), seed=0, repeats=config.augment.repeats, rank=3, world_size=8
    )
    assert (len(batches), config.augment.repeats) == (THEIRS["updates_per_epoch"], THEIRS["augmentation"]["repeats"])


@pytest.fixture
def view() -> RandomLabelledCrop:
    config = config_of("paper_p16")
    with torch.device("meta"):
        preprocessing = Preprocessing.of_model(xcit.create_model("xcit_s12")).at(config.data.image_size)
    classes = [str(number) for number in range(1000)]
    view = VIEWS["labelled_crop"].training(preprocessing, classes, "cpu", **config.augment.options)
    assert isinstance(view, RandomLabelledCrop)
    return view


def test_crop_flip_and_normalization(view: RandomLabelledCrop) -> None:
    transform, theirs = view.transform, THEIRS["augmentation"]
    assert (transform.preprocessing.size, transform.hflip) == ((224, 224), theirs["flip"])
    crop = {"scale": transform.scale, "ratio": transform.ratio, "interpolation": transform.preprocessing.interpolation}
    assert crop == theirs["crop"]
    # A pixel of 255 before and after normalization.
    white = transform.normalize(torch.full((1, 1, 1, 3), 255, dtype=torch.uint8)).flatten().tolist()
    assert white == pytest.approx([(1 - m) / s for m, s in zip(theirs["mean"], theirs["std"], strict=True)])


def test_rand_augment_alone_changes_colors(view: RandomLabelledCrop) -> None:
    """Color jitter is off, as timm leaves it out beside RandAugment."""
    theirs = THEIRS["augmentation"]["rand_augment"]
    (rand_augment,) = view.transform.color_transforms
    assert isinstance(rand_augment, RandAugment)
    assert (rand_augment.num_layers, rand_augment.choice_weights) == (theirs["operations"], None)
    strengths = {}
    for op in rand_augment.ops:
        assert (op.prob, op.magnitude, op.magnitude_std, op.magnitude_max) == (
            theirs["probability"],
            theirs["magnitude"],
            theirs["magnitude_std"],
            None,
        )
        assert (list(op.kwargs["fillcolor"]), op.kwargs["resample"]) == (theirs["fill"], theirs["interpolation"])
        random.seed(0)  # some strengths have a random sign
        strengths[op.name] = op.level_fn and [abs(value) for value in op.level_fn(9, op.hparams)]
    assert strengths == theirs["strength_at_9"]


def test_random_erasing(view: RandomLabelledCrop, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = THEIRS["augmentation"]["erasing"]
    assert view.transform.erase_prob == theirs["probability"]
    made: list[RandomErasing] = []

    def noting(**options: Any) -> RandomErasing:
        made.append(RandomErasing(**options))
        return made[0]

    monkeypatch.setattr(data.transforms, "RandomErasing", noting)
    view.transform.on_device(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), [0])
    values = {key: getattr(made[0], key) for key in theirs} | {"probability": view.transform.erase_prob}
    assert {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()} == theirs


def test_mixing(view: RandomLabelledCrop) -> None:
    theirs = THEIRS["augmentation"]["mixing"]
    assert {key: getattr(view.mixing.mixer, key) for key in theirs} == theirs
    assert view.mixing.mix_draws == 8, "each of their eight processes draws for itself"


@pytest.mark.parametrize("recipe", PAPER)
def test_the_other_settings(recipe: str) -> None:
    config = config_of(recipe)
    assert (config.optim.name, config.optim.clip_norm, config.optim.weight_decay) == ("adamw", None, 0.05)
    assert config.optim.options == {"betas": [0.9, 0.999], "eps": 1e-8}
    assert (config.train.epochs, config.train.global_batch_size) == (400, 1024)
    assert (config.train.ema_decay, config.train.best_by) == (0.99996, "raw")


@pytest.mark.parametrize(("recipe", "size"), [("distill_hard", 224), ("finetune_384", 384)])
def test_the_teacher_sees_the_size_of_the_student(recipe: str, size: int) -> None:
    config = config_of(recipe, "task=distill")
    task = config.task.options
    assert (config.data.image_size, task["teacher_image_size"]) == (size, size)
    assert (task["kind"], task["alpha"], task["tau"]) == ("hard", 0.5, 1.0)


def flat(config: TrainConfig) -> dict[str, Any]:
    content: dict[str, Any] = config.model_dump(serialize_as_any=True)
    sections = {f"{key}.{name}": v for key, s in content.items() if isinstance(s, dict) for name, v in s.items()}
    return {key: value for key, value in content.items() if not isinstance(value, dict)} | sections


@pytest.mark.parametrize("recipe", VARIED)
def test_a_variation_of_the_paper_differs_in_one_thing(recipe: str) -> None:
    paper, varied = flat(config_of("paper_p16")), flat(config_of(recipe))
    assert {key for key in paper if paper[key] != varied[key]} - {"resolutions"} == VARIED[recipe]


def test_the_earlier_schedule_is_one_choice_away() -> None:
    optim = config_of("paper_p16", "optim=adamw").optim
    assert (optim.lr_every, optim.cooldown_epochs, optim.decay_temperature) == ("update", 10, False)


def test_a_configuration_that_was_saved_before_keeps_its_meaning() -> None:
    """Runs that were begun earlier are continued with the schedule, decay, mixing and choice that they had."""
    saved = config_of("paper_p16", "task=distill").model_dump(serialize_as_any=True)
    for section, key in (
        ("optim", "lr_every"),
        ("optim", "decay_temperature"),
        ("train", "best_by"),
        ("augment", "mix_draws"),
        ("task", "divide_by"),
    ):
        del saved[section][key]
    saved["task"]["teacher_image_size"] = None
    config = read_config(TrainConfig, saved, TABLES)
    assert (config.optim.lr_every, config.optim.decay_temperature, config.train.best_by) == ("update", False, "better")
    assert config.augment.options["mix_draws"] == 1
    assert (config.task.options["divide_by"], config.task.options["teacher_image_size"]) == ("images", None)
