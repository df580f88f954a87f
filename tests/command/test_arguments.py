"""What a user types reaches the configuration as typed, and a mistake is answered with what to type instead."""

import subprocess
import sys
from pathlib import Path

import pytest

from eval import TABLES
from xcit.command import ArgumentParser
from xcit.command.arguments import prepare
from xcit.command.composing import check, composed, with_home
from xcit.command.hints import SYNONYMS
from xcit.command.settings import Settings, read_settings
from xcit.config import EvalConfig, TrainConfig
from xcit.config.composition import every_key
from xcit.errors import InputError

from ..conftest import ROOT


@pytest.fixture(scope="module")
def training() -> Settings:
    return read_settings(TrainConfig, "train", ROOT)


@pytest.fixture(scope="module")
def evaluation() -> Settings:
    return read_settings(EvalConfig, "eval", ROOT)


FOLDERS = (
    *("/x/photos", "/x/données", "写真", "my photos (1)", "it's", 'a "b"', "a,b", "a=b", "a:b c", " x ", "a\nb", "#1"),
    *("[x]", "{y}", "range(1,2)", "$x", "back\\", "a\\'b", "\\\\srv\\x", "'a", "~x", "%20"),
    *("1e3", "007", "1_000", "null", "true"),
)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_path_means_what_was_typed(training: Settings, folder: str) -> None:
    raw = composed(training, prepare(["data=folder", f"data.root={folder}", f"run_dir={folder}x"], training))
    assert (raw.data.root, raw.run_dir) == (folder, f"{folder}x")


def test_text_may_look_like_a_number_and_null_stays_null(training: Settings) -> None:
    raw = composed(training, prepare(["name=2024", "run_dir=null", "pretrained=true", "seed=7"], training))
    assert (raw.name, raw.run_dir, raw.pretrained, raw.seed) == ("2024", None, True, 7)
    raw = composed(training, prepare(["data=imagenet_shards", "data.urls=[/a,/b]"], training))
    assert raw.data.urls == ["/a", "/b"]
    raw = composed(training, prepare(["data=imagenet_shards", "data.urls=[/my photos (1),/données]"], training))
    assert raw.data.urls == ["/my photos (1)", "/données"]


def test_what_hydra_reads_in_text_still_works(training: Settings) -> None:
    raw = composed(training, prepare(["name='a b'", "run_dir=runs/${model.name}-${seed}"], training))
    assert (raw.name, raw.run_dir) == ("a b", "runs/xcit_n12-0")


def test_the_home_folder_is_expanded_wherever_a_path_stands(
    training: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    typed = ["data=imagenet_shards", "data.urls=[~/a,/b~/c]", "data.cache_dir=~", "run_dir=~you/x"]
    raw = with_home(composed(training, prepare(typed, training)))
    assert raw.data.urls == ["/home/me/a", "/b~/c"]
    assert (raw.data.cache_dir, raw.run_dir) == ("/home/me", "~you/x")
    parser = ArgumentParser("")
    parser.add_argument("--out")
    assert parser.parse_args(["--out=~/a~"]).out == "/home/me/a~"


def test_options_that_no_file_lists_need_no_plus(training: Settings) -> None:
    assert "model.depth" not in training.comments
    assert composed(training, prepare(["model.depth=2"], training)).model.depth == 2
    assert composed(training, prepare(["+model.depth=2"], training)).model.depth == 2


def test_a_resumed_run_decides_what_the_keys_are(training: Settings) -> None:
    with pytest.raises(InputError, match=r"^data\.root: not a key of what is chosen"):
        composed(training, prepare(["data.root=/x"], training))
    assert composed(training, prepare(["data.root=/x", "resume=runs/a"], training)).data.root == "/x"


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("lr=1", "lr: unknown key; did you mean optim.lr?"),
        ("epochs=1", "epochs: unknown key; did you mean train.epochs?"),
        ("batch_size=1", "batch_size: unknown key; did you mean train.global_batch_size?"),
        ("batch-size=1", "batch-size: unknown key; did you mean train.global_batch_size?"),
        ("weights=x", "weights: unknown key; did you mean pretrained?"),
        ("checkpoint=x", "checkpoint: unknown key; did you mean resume or pretrained?"),
        ("imgsz=64", "imgsz: unknown key; did you mean data.image_size or resolutions?"),
        ("mixup=0", "mixup: unknown key; did you mean augment.mixup?"),
        ("train.lr=1", "train.lr: unknown key; did you mean optim.lr?"),
        ("trian.epochs=1", "trian.epochs: unknown key; did you mean train.epochs?"),
        ("model.dpeth=1", "model.dpeth: unknown key; did you mean model.depth?"),
        ("modle=xcit_s12", "modle: unknown key; did you mean model?"),
        (
            "train.early_stopping=1",
            "train.early_stopping: unknown key; train has the settings accumulate, batch_size, best_by, ",
        ),
        ("bananas=1", "bananas: unknown key (--help lists the keys)"),
        ("--epochs", "--epochs: unknown option; settings are given as SETTING=VALUE; here train.epochs=… (--help"),
        ("--data.root=/x", "--data.root=/x: unknown option; settings are given as SETTING=VALUE; here data.root=/x"),
        ("--hlep", "--hlep: unknown option; did you mean --help?"),
        ("/my/images", "/my/images: must be given as SETTING=VALUE: data=folder data.root=/my/images (--help"),
        ("train.epochs", "train.epochs: must be given as SETTING=VALUE, without spaces"),
        ("run_dir=", "run_dir=: must have a value"),
        (
            "data=/my/images",
            "data=/my/images: must be a name, which --help lists; images in class folders are data=fol",
        ),
        ("model=null", "model=null: must be a name, which --help lists"),
        ("model=xcit_s12,xcit_n12", "model=xcit_s12,xcit_n12: must be one name; -m runs a job for each of several"),
        ("model=xcit_s13", "model=xcit_s13: unknown; did you mean xcit_s12?"),
        (
            "model=bananas",
            "model=bananas: unknown; a model of timm is given as model=timm model.name=bananas (one of timm, ",
        ),
        ("train.epochs=1,2", "train.epochs=1,2: must be one value; -m runs a job for each of several"),
        ("train.precision=fp32,bf16", "train.precision=fp32,bf16: must be one value; -m runs a job for each of sev"),
        ("resolutions=[64", "resolutions=[64: cannot be read ("),
        ("train.epochs=0", "train.epochs=0: must be"),
        ("seed=x", "seed=x: must be"),
        ("data=folder", "data.root: must be given"),
        ("train.epochs:5", "train.epochs:5: must be given as SETTING=VALUE: train.epochs=5"),
        ("train/epochs=5", "train/epochs: unknown key; did you mean train.epochs?"),
        ("~/foo", "~/foo: must be given as SETTING=VALUE: data=folder data.root=~/foo"),
        ("train=3", "train: unknown key; train has the settings accumulate, batch_size, best_by, "),
        ("name=null", "name=null: must be the name of a folder; without name= it is MODEL_DATA"),
        ("model=resnet50", "model=resnet50: unknown; a model of timm is given as model=timm model.name=resnet50 (one"),
        ("model=XCIT_S12", "model=XCIT_S12: unknown; did you mean xcit_s12?"),
        (
            "model=xcit_small_12_p16_224",
            "model=xcit_small_12_p16_224: unknown; did you mean model=xcit_s12 model.patch_size=16?",
        ),
        ("model=runs/x", "model=runs/x: must be a name, which --help lists; trained weights are pretrained=runs/x"),
        ("--config x.yaml", "--config: unknown option; settings are given as SETTING=VALUE; here recipe=…"),
        ("--data /x", "--data: unknown option; settings are given as SETTING=VALUE; here data=folder data.root=/x"),
        ("device=cpu", "device: unknown key; a run uses the GPU if there is one; CUDA_VISIBLE_DEVICES"),
        ("gpus=2", "gpus: unknown key; torchrun --nproc-per-node=N"),
        ("num_classes=3", "num_classes: unknown key; it follows from the data set"),
        ("ema=0.9", "ema: unknown key; did you mean train.ema_decay?"),
        ("scheduler=cosine", "scheduler: unknown key; did you mean optim?"),
        ("pretrained=/no/such", "pretrained=/no/such: no such file or run folder"),
        ("resume=runs/no", "resume=runs/no: no such file or run folder"),
    ],
)
def test_a_mistake_is_answered_with_what_to_type(training: Settings, typed: str, line: str) -> None:
    with pytest.raises(InputError) as error:
        check(composed(training, prepare(typed.split(), training)), TrainConfig)
    assert str(error.value).startswith(line)


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("runs/a", "runs/a: must be given as SETTING=VALUE: checkpoint=runs/a (--help lists the keys)"),
        ("resume=runs/a", "resume: unknown key; did you mean checkpoint?"),
        ("imgsz=64", "imgsz: unknown key; did you mean data.image_size or resolutions?"),
        ("train.epochs=1", "train.epochs: unknown key"),
        ("weights=ema,raw", "weights=ema,raw: must be one value; -m runs a job for each of several"),
        ("augment=deit", "augment: unknown key"),
        ("model=runs/x", "model=runs/x: must be a name, which --help lists; trained weights are checkpoint=runs/x"),
        ("checkpoint=~/no/such", "checkpoint=~/no/such: no such file or run folder"),
        ("resolutions=64", "resolutions=64: must be"),
        ("resolutions=[64,32,64]", "resolutions=[64,32,64]: must name each resolution once; 64 is there twice"),
    ],
)
def test_a_mistake_in_an_evaluation(evaluation: Settings, typed: str, line: str) -> None:
    with pytest.raises(InputError) as error:
        check(composed(evaluation, prepare(["checkpoint=x", typed], evaluation)), EvalConfig)
    assert str(error.value).startswith(line)


def test_every_word_of_other_tools_leads_somewhere(training: Settings, evaluation: Settings) -> None:
    known = {*training.types, *training.groups, *evaluation.types, *evaluation.groups}
    assert {target for targets in SYNONYMS.values() for target in targets} <= known


ANSWERED = (["--help"], ["lr=1"], ["train.epochs=abc"], ["data=folder"], ["model=xcit_s13"], ["--hlep"])


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        *((script, arguments) for script in ("train.py", "eval.py") for arguments in ANSWERED),
        *((f"scripts/{name}.py", ["dta=x"]) for name in ("find_lr", "show_batch", "measure_data")),
        *((f"scripts/{name}.py", ["--hlep"]) for name in ("predict", "export", "demo", "embed", "show_attention")),
        ("scripts/find_lr.py", ["--help"]),
        ("scripts/predict.py", ["a.jpg", "formt=csv"]),
    ],
)
def test_torch_is_not_loaded_for_an_answer(script: str, arguments: list[str], tmp_path: Path) -> None:
    """A finder that refuses torch stands in for the two seconds that it takes."""
    blocked = (
        "import runpy, sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': raise AssertionError('torch is imported')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "del sys.argv[0]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-c", blocked, str(ROOT / script), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "torch is imported" not in done.stderr
    assert done.returncode == (0 if arguments == ["--help"] else 2), done.stderr
    assert done.stderr.count("\n") == (0 if arguments == ["--help"] else 1)


def test_every_setting_exists(training: Settings, evaluation: Settings) -> None:
    """What is read from the source is what the schema of some choice accepts."""
    assert set(training.types) <= set(every_key(TrainConfig, TABLES))
    assert set(evaluation.types) <= set(every_key(EvalConfig, TABLES))
