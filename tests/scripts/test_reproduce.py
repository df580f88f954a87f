"""Every command that scripts/reproduce.py prints can be run, and the costs that it and the recipes state are right."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import timm

import eval as evaluation
from scripts import paper_results, reproduce
from scripts.paper_results import Row
from scripts.reproduce import DEFAULT_TFLOPS, composed, needs
from train import TABLES
from xcit.config import EvalConfig, TrainConfig
from xcit.config.composition import read_config
from xcit.evaluation.flops import forward_flops
from xcit.weights.published import PUBLISHED, PUBLISHED_DENSE, find_published

from ..conftest import ROOT, Result

Command = Callable[..., Result]

ROWS = list(paper_results.every_row())
# command with its shell variables replaced → its row
RUNNABLE: dict[str, Row] = {
    re.sub(r"\$(IMAGENET|DATA|COCO|ADE20K|PHOTO)\b", "/images", row.command): row for _, row in ROWS if row.command
}
TRAININGS = [command for command in RUNNABLE if "train.py" in command]
EVALUATIONS = [command for command in RUNNABLE if "eval.py" in command]
GMACS = {"n12": 0.56, "t12": 1.24, "t24": 2.34, "s12": 4.82, "s24": 9.10, "m24": 16.13}  # published, at patch 16
PAPER = "torchrun --nproc-per-node=8 train.py model=xcit_s12 data.root=/images"


DRAWINGS = [command for command in RUNNABLE if "show_attention.py" in command]


def test_commands_are_of_known_scripts() -> None:
    assert set(TRAININGS) | set(EVALUATIONS) | set(DRAWINGS) == set(RUNNABLE)
    assert not [command for command in RUNNABLE if "$" in command or "\n" in command]


@pytest.mark.parametrize("command", TRAININGS)
def test_a_training_command_trains_the_model_of_its_row(command: str) -> None:
    *starter, script = shlex.split(command)[:3]
    config = read_config(TrainConfig, composed(command), TABLES)
    assert starter == ["torchrun", "--nproc-per-node=8"] and (ROOT / script).is_file()
    patch = f"_p{config.model.options['patch_size']}" if config.model.library == "xcit" else ""
    assert config.model.name + patch == RUNNABLE[command].model
    assert config.data.options["root"] == "/images"
    assert config.train.images_per_pass(world_size=8) >= 1


@pytest.mark.parametrize("command", EVALUATIONS)
def test_an_evaluation_command_evaluates_the_model_of_its_row(command: str) -> None:
    starter, script = shlex.split(command)[:2]
    config = read_config(EvalConfig, composed(command), TABLES)
    assert starter == "python" and (ROOT / script).is_file()
    row, entry = RUNNABLE[command], find_published(config.checkpoint)
    if entry:
        assert (f"{entry.model}_p{entry.patch_size}", entry.file) == (row.model, row.weights)
    else:
        assert config.checkpoint.startswith(f"timm/{row.model}.")
        assert config.checkpoint.removeprefix("timm/") in timm.list_pretrained()
    assert config.data and config.data.options["root"] == "/images"


def test_the_figure_of_attention_maps_is_drawn_by_its_script() -> None:
    ((row, command),) = [(row, row.command) for section, row in ROWS if section == "figure4"]
    starter, script, name, photo = shlex.split(command or "")
    assert (starter, photo) == ("python", "$PHOTO") and (ROOT / script).is_file()
    entry = find_published(name)
    assert entry and (f"{entry.model}_p{entry.patch_size}", entry.file) == (row.model, row.weights)


@pytest.mark.parametrize("command", [c for c in EVALUATIONS if "timm/" in c])
def test_an_evaluation_uses_sizes_that_its_model_accepts(command: str) -> None:
    whole = evaluation.completed(composed(command), None, Path("weights"))
    assert (whole.resolutions == [224]) == ("cait" in command), "which takes no other size"


def test_a_continued_run_names_the_folder_of_an_earlier_run() -> None:
    made: set[str] = set()
    for command in TRAININGS:
        config = read_config(TrainConfig, composed(command), TABLES)
        made.add(config.run_dir or "")
        assert config.pretrained in {None, "fb_dist_in1k", "fb_dist_in1k_384", *made}
        if config.pretrained in made:
            assert f"{config.model.name}_p{config.model.options['patch_size']}_" in str(config.pretrained)


def test_every_published_file_has_its_row_and_its_numbers() -> None:
    assert len(PUBLISHED) == 46
    for entry in PUBLISHED.values():
        rows = [(section, row) for section, row in ROWS if row.weights == entry.file]
        if entry.top1 is None:
            found = [row.published for section, row in rows if section == "table3"]
            assert {"k-NN top-1": entry.knn} in found and {"linear top-1": entry.linear} in found
        else:
            ((_, row),) = [(section, row) for section, row in rows if section == "table2"]
            assert row.published == {"top-1": entry.top1}
            assert row.command and f"checkpoint={entry.file.removesuffix('.pth')} " in row.command
            trained = [r for section, r in ROWS if section == "table2" and r.model == row.model and not r.weights]
            assert {"top-1": entry.top1} in [r.published for r in trained]


def test_every_switch_of_the_ablation_is_trained() -> None:
    switches = {word for s, row in ROWS if s == "table4" for word in shlex.split(row.command or "") if "model." in word}
    assert switches >= {
        "model.lpi=false",
        "model.attention=none",
        "model.attention=self_attention",
        "model.patch_embed=linear",
        "model.l2_norm=false",
        "model.temperature=false",
        "model.pool=average",
        "model.position=none",
    }
    base, *ablated = [row for section, row in ROWS if section == "table4"]
    assert base.published == {"top-1": 82.0} and not any(row.published for row in ablated)


@pytest.mark.parametrize("name", GMACS)
def test_flops_are_twice_the_published_multiply_adds(name: str) -> None:
    assert forward_flops(f"xcit_{name}", 224, patch_size=16) == pytest.approx(2e9 * GMACS[name], rel=0.02)


def test_hours_follow_from_flops() -> None:
    flops = 3 * 2 * 4.82e9 * 1_281_167 * 400
    found = needs(f"{PAPER} data=imagenet", 100)
    assert found and found.gpus == 8 and found.gmacs == pytest.approx(4.82, rel=0.02)
    assert found.hours == pytest.approx(flops / (8 * 100e12) / 3600, rel=0.02)
    alone = needs(f"{PAPER} data=imagenet".replace("torchrun --nproc-per-node=8", "python"), 50)
    assert alone and alone.gpus == 1 and found.hours and alone.hours == pytest.approx(16 * found.hours)


@pytest.mark.parametrize(
    ("more", "ratio"),
    [
        (
            "data=imagenet recipe=distill_hard",
            1 + 15.95 / (3 * 4.82),
        ),  # RegNetY-160's GMACs (timm's table), forward alone
        ("data=imagenet recipe=paper_p8", 18.69 / 4.82),  # by the reference code's count
        ("data=imagenet recipe=finetune_384", 30 / 400 * (384 / 224) ** 2),
        ("data=imagenet recipe=progressive", (128**2 + 160**2 + 192**2 + 224**2) / (4 * 224**2)),
        ("data=imagenet recipe=deit3", 2),
        ("data=cifar10", 50_000 / 1_281_167 * 100 / 400),
        ("data=inat data.year=2019", 265_213 / 1_281_167 * 300 / 400),
    ],
)
def test_hours_follow_the_command(more: str, ratio: float) -> None:
    base, found = needs(f"{PAPER} data=imagenet", 100), needs(f"{PAPER} {more}", 100)
    assert base and found and base.hours and found.hours
    assert found.hours / base.hours == pytest.approx(ratio, rel=0.02)


DENSE = {"coco": "fb_maskrcnn_coco", "ade20k": "fb_sem_fpn_ade20k", "ade20k_upernet": "fb_upernet_ade20k"}
COSTLY = [path.stem for path in sorted((ROOT / "conf/recipe").glob("*.yaml")) if "digits" not in path.stem]


def stated(recipe: str) -> tuple[str, str]:
    """What a recipe's header states as its cost and as its top-1."""
    head = (ROOT / f"conf/recipe/{recipe}.yaml").read_text().partition("defaults:")[0]
    cost, expected = head.partition("# Cost: ")[2].split("# Expect: ")
    return cost, expected


def gpu_hours(recipe: str, *more: str) -> str:
    """The script's estimate on the data set of the recipe's header, or on ImageNet, as the headers write it."""
    # For 50,000 images.
    own = dict.fromkeys(("transfer", "folder", "folder_from_scratch", "images", "table"), "cifar10")
    own |= {"coco_1x": "coco", "ade20k_upernet": "ade20k"}
    data = own.get(recipe) or (recipe if (ROOT / f"conf/data/{recipe}.yaml").is_file() else "imagenet")
    data = "imagenet" if data == "imagenet_shards" else data
    found = needs(shlex.join([*shlex.split(PAPER), f"data={data}", f"recipe={recipe}", *more]), DEFAULT_TFLOPS)
    assert found and found.hours
    hours = found.gpus * found.hours
    return f"{hours:.1f}" if hours >= 0.1 else f"{hours:.2f}"


@pytest.mark.parametrize("recipe", COSTLY)
def test_a_recipe_states_the_cost_that_the_script_estimates(recipe: str) -> None:
    cost, _ = stated(recipe)
    hours = re.match(
        r"([\d.]+) GPU hours with model=xcit_s12, ([\d.]+) with xcit_n12 \(A100s; estimate of scripts/reproduce\.py\)",
        cost,
    )
    assert hours and hours.groups() == (gpu_hours(recipe), gpu_hours(recipe, "model=xcit_n12"))
    for choice, *more in re.findall(r"With (\w+=\w+): ([\d.]+) and ([\d.]+) GPU hours", cost):
        assert more == [gpu_hours(recipe, choice), gpu_hours(recipe, choice, "model=xcit_n12")]


def test_a_recipe_states_the_top1_that_was_published() -> None:
    top1 = r"([\d.]+) % top-1 with model=xcit_s12, ([\d.]+) % with xcit_n12 \(published\)"
    found = {recipe: re.match(top1, stated(recipe)[1]) for recipe in COSTLY}
    published = {
        "paper_p16": "xcit_s12_p16.fb_in1k",
        "imagenet": "xcit_s12_p16.fb_in1k",
        "imagenet_shards": "xcit_s12_p16.fb_in1k",
        "paper_p8": "xcit_s12_p8.fb_in1k",
        "distill_hard": "xcit_s12_p16.fb_dist_in1k",
        "finetune_384": "xcit_s12_p16.fb_dist_in1k_384",
    }
    assert {recipe: (float(values[1]), float(values[2])) for recipe, values in found.items() if values} == {
        recipe: (PUBLISHED[name].top1, PUBLISHED[name.replace("s12", "n12")].top1) for recipe, name in published.items()
    }
    knn = {float(value) for value in re.findall(r"([\d.]+) / [\d.]+ %", stated("dino")[1])}
    assert knn == {entry.knn for entry in PUBLISHED.values() if entry.knn}
    others = {stated(recipe)[1] for recipe, values in found.items() if not values and recipe not in ("dino", *DENSE)}
    assert others == {"no result is published for this recipe, and it has not been run.\n"}


@pytest.mark.parametrize("recipe", DENSE)
def test_a_recipe_of_detection_or_segmentation_states_what_was_published(recipe: str) -> None:
    entry = PUBLISHED_DENSE[f"xcit_s12_p16.{DENSE[recipe]}"]
    figures = {"box mAP": entry.box_map, "mask mAP": entry.mask_map, "mIoU": entry.miou}
    known = ", ".join(f"{name} {value}" for name, value in figures.items() if value is not None)
    assert stated(recipe)[1].startswith(f"{known} with model=xcit_s12 (published).")


def test_the_page_of_recipes_states_what_they_do() -> None:
    page = (ROOT / "docs/recipes.md").read_text()
    for recipe in COSTLY:
        (row,) = re.findall(rf"^\| `{recipe}` \|.*\| ([\d.]+) \| ([\d.]+|—) \|$", page, re.MULTILINE)
        cost, expected = stated(recipe)
        top1 = re.search(r"([\d.]+) % top-1", expected)
        assert row == (cost.split()[0], top1[1] if top1 else "—")


def test_a_row_is_a_comment_and_an_unbroken_command(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    result = command("scripts/reproduce.py", "--list", "--only", "xcit_small_12_p16_384_dist")
    assert result.status == 0, result.stderr
    commands = [line for line in result.stdout.splitlines() if line and not line.startswith("#")]
    checkpoint = "checkpoint=xcit_small_12_p16_384_dist"
    assert commands == [f"python eval.py {checkpoint} data=imagenet data.root=$IMAGENET 'resolutions=[384]'"]
    assert "# xcit_s12_p16, at 384, distilled, evaluate | top-1 84.7 | 1 GPU, minutes\n" in result.stdout


@pytest.mark.parametrize(
    ("only", "shown"),
    [
        ("table5", "xcit_m24_p8, Mask R-CNN for 36 epochs, evaluate | box mAP 48.5, mask mAP 43.7 | 1 GPU, minutes\n"),
        ("ADE20k", "xcit_s24_p16, UperNet for 160,000 updates, evaluate | mIoU 46.9 | 1 GPU, minutes\n"),
        (
            "DINO",
            "xcit_m24_p8, linear at 384, evaluate | linear top-1 80.9 | 1 GPU, minutes\npython eval.py checkpoint="
            "xcit_medium_24_cp8_dino data=imagenet data.root=$IMAGENET evaluate=linear 'resolutions=[384]'\n",
        ),
        ("DINO", "train.py model=xcit_s12 data=imagenet data.root=$IMAGENET model.patch_size=8 recipe=dino\n"),
        (
            "figure 4",
            "xcit_s12_p8, class-attention maps of each head | — | 1 GPU, minutes\npython scripts/show_attention",
        ),
        ("figure 2", "xcit_s12_p16, memory and time per image, by resolution | — | needs: —\n# not built yet\n"),
    ],
)
def test_a_section_says_what_is_known(command: Command, only: str, shown: str) -> None:
    result = command("scripts/reproduce.py", "--only", only)
    assert result.status == 0, result.stderr
    assert shown in result.stdout


def test_nothing_is_claimed_beyond_the_paper() -> None:
    beyond = [row for section, row in ROWS if section == "beyond"]
    assert {reproduce.published_text("beyond", row) for row in beyond} == {"no claim"}
    recipes = " ".join(row.command or "" for row in beyond)
    for recipe in ("deit3", "deit3_finetune_384", "small_long", "muon", "low_resolution", "progressive"):
        assert f"recipe={recipe}" in recipes


def test_json_is_a_list_of_rows(command: Command) -> None:
    result = command("scripts/reproduce.py", "--only", "xcit_n12_p16", "--json", "--tflops", "50")
    assert result.status == 0, result.stderr
    evaluated, trained, *others = json.loads(result.stdout)
    assert len(others) == 4
    assert evaluated["published"] == {"top-1": 69.9} and evaluated["needs"]["gpus"] == 1
    assert trained["needs"] == {"gpus": 8, "estimate": True, "tflops": 50.0} | {
        key: pytest.approx(value, rel=0.02) for key, value in {"hours": 1.2, "gmacs": 0.56}.items()
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "tabel4"], "--only=tabel4: unknown; did you mean table4?"),
        (["--only", "..."], "--only=...: unknown"),
        (["--tflops", "0"], "--tflops: 0: must be a number above 0"),
        (["--tflops", "many"], "--tflops: many: must be a number above 0"),
        (["--jsn"], "--jsn"),
        (["table4"], "table4"),
    ],
)
def test_bad_arguments_end_with_one_line(command: Command, arguments: list[str], message: str) -> None:
    result = command("scripts/reproduce.py", *arguments)
    assert (result.status, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert result.stderr.count("\n") == 1
