"""Unusable input ends a command with one clear line and exit status 2. Nothing is written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import xcit
from data.datasets.digits import DigitImages

from .conftest import TINY, Result, launch

Command = Callable[..., Result]


def refused(result: Result, folder: Path, before: set[Path]) -> str:
    """Checks that the command printed one error and wrote nothing. Returns the error."""
    assert result.status == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert {path for path in folder.rglob("*") if path.name != "__pycache__"} == before
    return result.stderr.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("train.epoch=3", "train.epoch: unknown key; did you mean train.epochs?"),
        ("+train.epoch=3", "train.epoch: unknown key; did you mean train.epochs?"),
        ("modle=xcit_s12", "modle: unknown key; did you mean model?"),
        ("model=xcit_s13", "model=xcit_s13: unknown; did you mean xcit_s12? (one of timm, xcit_l24, xcit_m24, "),
        ("model=null", "model=null: must be a name, which --help lists"),
        ("recipe=3", "recipe=3: must be a name, which --help lists"),
        ("data.image_size=x", "data.image_size=x: must be an integer of at least 1"),
        ("pretrained=3", "pretrained=3: no such file or run folder, nor the name of published weights"),
        ("data=imagnet", "data=imagnet: unknown; did you mean imagenet? (one of ade20k, cars, cifar10, "),
        ("optim.name=adamx", "optim.name=adamx: unknown; did you mean adamax?"),
        ("data.root=/x", "data.root: not a key of what is chosen for data; choose with data="),
        ("train.epochs=many", "train.epochs=many: must be an integer of at least 1, auto or null"),
        ("train.epochs=2.5", "train.epochs=2.5: must be an integer of at least 1, auto or null"),
        ("train.epochs=true", "train.epochs=true: must be an integer of at least 1, auto or null"),
        ("train.compile=3", "train.compile=3: must be true or false"),
        ("train.epochs=0", "train.epochs=0: must be an integer of at least 1, auto or null"),
        ("train.updates=0", "train.updates=0: must be an integer of at least 1 or null"),
        ("train.epochs=null", "train.epochs: must be given, or train.updates"),
        ("train.ema_decay=1", "train.ema_decay=1: must be a number of at least 0 and less than 1, or null"),
        ("optim.lr=-1", "optim.lr=-1: must be a number greater than 0"),
        ("optim.lr=nan", "optim.lr=nan: must be a finite number greater than 0"),
        ("augment.hflip=1.5", "augment.hflip=1.5: must be a number from 0 to 1"),
        ("augment.scale=[0.5,0.2]", "augment.scale=[0.5,0.2]: must rise, and end at 1 at most"),
        ("augment.rand_augment=auto", "augment.rand_augment=auto: must be a policy of timm's"),
        ("train.precision=fp8", "train.precision=fp8: must be fp32, bf16 or fp16"),
        ("resolutions=[]", "resolutions=[]: must be a list of one or more integers of at least 1"),
        (
            "resolutions=[32,4]",
            "resolutions=4: the model does not take images of this size (image of 4×4 pixels: must hold one ",
        ),
        ("data.image_size=7", "data.image_size=7: the model does not take images of this size"),
        ("model.patch_size=12", "model.patch_size=12: must be 2, 4, 8, 16 or 32"),
        ("model.drop_path_rate=1.0", "model.drop_path_rate=1.0: must be at least 0 and less than 1"),
        (
            "train.accumulate=5",
            "train.global_batch_size=64: must be a multiple of 5 (1 processes × train.accumulate=5)",
        ),
        ("train.epochs=[3", "train.epochs=[3: cannot be read"),
        ("data=imagenet", "data.root: must be given"),
        ("resume=nowhere", "resume=nowhere: no such file or run folder"),
        ("model.heads=3", "model.heads=3: must divide dim=128"),
        ("optim.name=adan", "optim.options="),
        ("task.loss=binary_cross_entropy", "augment.label_smoothing=0.1: must be 0 with task.loss=binary_cross_ent"),
        ("model.heads=5", "model.heads=5: must divide dim=128"),
        ("augment.rand_augment=rand-m9-foo1", "augment.rand_augment=rand-m9-foo1: must be a policy of timm's"),
        (
            "pretrained=fb_dist",
            "pretrained=fb_dist: no such file or run folder, nor the name of published weights; did ",
        ),
        (
            "pretrained=fb_in1k model.patch_size=4",
            "pretrained=fb_in1k: not published for xcit_n12 at patch_size=4 (published: fb_in1k, fb_dist_in1k, "
            "fb_dist_in1k_384 at patch_size=8; fb_in1k, fb_dist_in1k, fb_dist_in1k_384 at patch_size=16); "
            "pretrained=null trains from scratch",
        ),
        (
            "pretrained=fb_in1k model=timm model.name=resnet10t",
            "pretrained=fb_in1k: names weights of an XCiT; true takes timm's own weights of this model; pretra",
        ),
        ("pretrained=nowhere.pth", "pretrained=nowhere.pth: no such file or run folder, nor the name of published"),
        ("+augment.dice=1", "augment.dice: unknown key; augment has the settings blur, brightness, "),
        ("optim.options.momentun=0.9", "optim.options.momentun: unknown key; +optim.options.momentun=… adds it"),
        (
            "+optim.options.momentun=0.9",
            "optim.options={'betas': [0.9, 0.999], 'eps': 1e-08, 'momentun': 0.9}: not accepted",
        ),
    ],
)
def test_a_wrong_configuration_is_refused(command: Command, tmp_path: Path, argument: str, line: str) -> None:
    message = refused(command("train.py", *argument.split(), "run_dir=new"), tmp_path, set())
    assert message.startswith(line)
    assert "\n" not in message


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_a_name_stays_below_runs(command: Command, tmp_path: Path, name: str) -> None:
    message = refused(command("train.py", f"name={name}"), tmp_path, set())
    assert message == f"name={name}: must be a folder below runs/; run_dir= takes any"


def test_a_name_or_a_folder_that_is_too_long_is_refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DigitImages, "__init__", None)  # it is refused before the data are read
    long = "x" * 300
    message = refused(command("train.py", f"name={long}"), tmp_path, set())
    assert message == f"name={long}: must be the name of a folder, with 255 bytes at most"
    for arguments in (("train.py",), ("train.py", "resume=auto"), ("eval.py", "checkpoint=nowhere.pt")):
        message = refused(command(*arguments, f"run_dir=runs/{long}"), tmp_path, set())
        assert message == f"run_dir=runs/{long}: cannot be used (File name too long)"


def test_any_path_that_is_too_long_is_refused(command: Command, tmp_path: Path) -> None:
    long = "x" * 300
    line = f"{long}: cannot be used (File name too long)"
    for arguments in (
        ("train.py", "data=folder", f"data.root={long}"),
        ("train.py", *TINY, f"pretrained={long}"),
        ("eval.py", f"checkpoint={long}"),
        ("scripts/make_shards.py", long, "shards"),
    ):
        assert refused(command(*arguments), tmp_path, set()).endswith(line)


def test_a_run_that_failed_in_its_first_epoch_can_be_started_again(command: Command, tmp_path: Path) -> None:
    arguments = ("train.py", *TINY, "+model.depth=1", "resolutions=[16]", "run_dir=run")
    failed = command(*arguments, "optim.lr=1e30")
    assert (failed.status, "error: " in failed.stderr) == (1, True)
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"config.yaml", "metrics.jsonl"}
    for more in ("optim.lr=1e30", "resume=auto"):
        again = command(*arguments, more)
        assert "note: run: an earlier start ended before its first checkpoint; its files are over" in again.stderr
    assert again.status == 0
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1
    assert "e+30" not in (tmp_path / "run" / "config.yaml").read_text()


def test_cutmix_with_one_class_is_refused(command: Command, image_tree: Callable[..., Path], tmp_path: Path) -> None:
    root = image_tree("mine", {"only": 10})
    before = set(tmp_path.rglob("*"))
    arguments = ("data=folder", f"data.root={root}", "pretrained=null", "augment.cutmix=1.0", "augment.mixup=0")
    result = command("train.py", *arguments)
    assert refused(result, tmp_path, before).startswith("data: the training images have one class, and a")


@pytest.mark.parametrize("data", ["folder", "imagenet"])
def test_a_data_folder_that_is_missing_or_empty_is_refused(command: Command, tmp_path: Path, data: str) -> None:
    result = command("train.py", f"data={data}", "data.root=nowhere")
    assert refused(result, tmp_path, set()) == "nowhere: no such folder (data.root)"
    (tmp_path / "empty").mkdir()
    result = command("train.py", f"data={data}", "data.root=empty")
    message = refused(result, tmp_path, {tmp_path / "empty"})
    assert message.startswith("empty: holds no class folders" if data == "folder" else "empty/train: no such folder")


def test_a_class_in_val_that_train_lacks_is_refused(
    command: Command, image_tree: Callable[..., Path], tmp_path: Path
) -> None:
    root = image_tree("mine", {"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/wolf": 1})
    before = set(tmp_path.rglob("*"))
    message = refused(command("train.py", "data=folder", f"data.root={root}"), tmp_path, before)
    assert message == (
        f"{root}/val/wolf: class is not in the training split (1 such class); known classes: cat, dog; "
        "move it elsewhere, or train a model with all classes"
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_is_named(
    command: Command, image_tree: Callable[..., Path], workers: int
) -> None:
    root = image_tree("mine", {"train/cat": 4, "train/dog": 4, "val/dog": 1})
    broken = root / "train" / "dog" / "002.png"
    broken.write_bytes(b"no image")
    small = ("data.image_size=16", "model.patch_size=8", "train.global_batch_size=8", f"data.workers={workers}")
    arguments = ("data=folder", f"data.root={root}", "pretrained=null", *small, "resolutions=[16]", "run_dir=new")
    result = command("train.py", *arguments)
    assert result.status == 2
    assert result.stderr.splitlines()[-1].startswith(f"error: {broken}: cannot be decoded")
    assert "Traceback" not in result.stderr


def test_a_broken_image_that_another_process_reads_is_named(image_tree: Callable[..., Path], tmp_path: Path) -> None:
    root = image_tree("mine", {"train/cat": 4, "train/dog": 4, "val/dog": 2})
    broken = root / "val" / "dog" / "001.png"  # the second process evaluates the second of two images
    broken.write_bytes(b"no image")
    small = (
        "data.image_size=16",
        "model.patch_size=8",
        "train.global_batch_size=8",
        "data.workers=0",
        "train.epochs=1",
    )
    arguments = ("data=folder", f"data.root={root}", "pretrained=null", *small, "resolutions=[16]", "run_dir=new")
    result = launch("train.py", *arguments, cwd=tmp_path, processes=2)
    assert result.stderr.count(f"error: {broken}: cannot be decoded") == 1
    assert not (tmp_path / "new").exists()


def test_a_weight_file_without_a_state_dict_is_refused(command: Command, tmp_path: Path) -> None:
    for number, content in enumerate(({"model": 3}, {1: torch.zeros(1)}, {"cls_attn_blocks.0.attn.qkv.weight": 1})):
        torch.save(content, tmp_path / f"{number}.pth")
        before = set(tmp_path.rglob("*"))
        result = command("eval.py", f"checkpoint={number}.pth", "model=xcit_n12", "data=digits")
        assert refused(result, tmp_path, before).startswith(f"checkpoint={number}.pth: holds no state dict")


def test_a_read_only_run_folder_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    message = refused(command("train.py", *TINY, "run_dir=locked/run"), tmp_path, {tmp_path / "locked"})
    assert message == f"run_dir=locked/run: {tmp_path}/locked is read-only"


def test_a_file_that_is_not_a_checkpoint_is_refused(command: Command, tmp_path: Path) -> None:
    for name, content in (("text.pt", b"hello"), ("empty.pt", b"")):
        (tmp_path / name).write_bytes(content)
    before = set(tmp_path.rglob("*"))
    for name in ("text.pt", "empty.pt"):
        message = refused(command("eval.py", f"checkpoint={name}"), tmp_path, before)
        assert message.startswith(f"checkpoint={name}: not a file of weights")
    message = refused(command("eval.py", "checkpoint=nowhere"), tmp_path, before)
    assert message == "checkpoint=nowhere: no such file or run folder, nor the name of published weights"
    assert refused(command("eval.py"), tmp_path, before) == "checkpoint: must be given"
    (tmp_path / "folder").mkdir()
    message = refused(command("eval.py", "checkpoint=folder"), tmp_path, before | {tmp_path / "folder"})
    assert message == "checkpoint=folder: holds neither a run's checkpoints/last.pt nor model.safetensors"


def test_a_checkpoint_of_another_architecture_is_refused(command: Command, tmp_path: Path) -> None:
    torch.save({"model": xcit.create_model("xcit_n12", num_classes=10).state_dict()}, tmp_path / "n12.pth")
    before = set(tmp_path.rglob("*"))
    result = command("eval.py", "checkpoint=n12.pth", "model=xcit_t24", "data=digits", "run_dir=new")
    lines = refused(result, tmp_path, before).splitlines()
    assert lines[0] == "n12.pth: belongs to another architecture"
    assert 2 <= len(lines) <= 4
    assert "missing: model.blocks.12." in lines[1]
    result = command("train.py", "pretrained=n12.pth", "model=xcit_t12", "run_dir=new")
    assert "of another shape: " in refused(result, tmp_path, before)


def test_an_evaluation_refuses_resolutions_below_one_patch(command: Command, tmp_path: Path) -> None:
    torch.save(xcit.create_model("xcit_n12", num_classes=10).state_dict(), tmp_path / "n12.pth")
    before = set(tmp_path.rglob("*"))
    result = command("eval.py", "checkpoint=n12.pth", "model=xcit_n12", "data=digits", "resolutions=[32,15]")
    assert refused(result, tmp_path, before) == (
        "resolutions=15: the model does not take images of this size "
        "(image of 15×15 pixels: must hold one patch of 16×16)"
    )


def test_targets_of_a_kind_that_the_task_does_not_accept_are_refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands refuse them before they build a model or write a folder. An evaluation uses the run's task."""
    torch.save(xcit.create_model("xcit_n12", num_classes=10).state_dict(), tmp_path / "n12.pth")
    small = (*TINY, "+model.depth=1", "+model.class_depth=1", "resolutions=[16]")
    assert command("train.py", *small, "task=classify", "run_dir=run").status == 0
    before = {path for path in tmp_path.rglob("*") if path.name != "__pycache__"}

    monkeypatch.setattr(DigitImages, "target_kind", "boxes")
    line = "task=classify: learns from targets of kind class; those of data=digits are boxes"
    assert refused(command("train.py", *small, "run_dir=new"), tmp_path, before) == line
    distilled = ("task=distill", "task.teacher=test_vit", "recipe=digits")
    assert refused(command("train.py", *small, *distilled, "run_dir=new"), tmp_path, before) == line.replace(
        "classify", "distill"
    )
    assert refused(command("eval.py", "checkpoint=run", "run_dir=new"), tmp_path, before) == line
    bare = ("checkpoint=n12.pth", "model=xcit_n12", "data=digits", "run_dir=new")
    assert refused(command("eval.py", *bare), tmp_path, before) == line
    assert refused(command("scripts/show_batch.py", *small), tmp_path, before) == line
