"""A value that a key does not accept is refused in one line: the key, the value, and what would be accepted."""

from typing import Annotated, Any, Literal

import pytest
from hydra import compose, initialize_config_dir
from pydantic import Field, create_model

from eval import TABLES
from xcit.config import EvalConfig, TrainConfig
from xcit.config.accepted_values import accepted
from xcit.config.composition import read_config
from xcit.errors import InputError

from .conftest import ROOT


def refusal(*overrides: str, root: str = "train") -> str:
    """The error for a configuration that Hydra composes."""
    schema = TrainConfig if root == "train" else EvalConfig
    with (
        initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")),
        pytest.raises(InputError) as refused,
    ):
        read_config(schema, compose(root, list(overrides)), TABLES)
    return str(refused.value)


@pytest.mark.parametrize(
    ("argument", "wanted"),
    [
        # numbers
        ("seed=-1", "an integer from 0 to 4294967295"),
        ("seed=1.5", "an integer from 0 to 4294967295"),
        ("train.accumulate=null", "an integer of at least 1"),
        ("train.epochs=abc", "an integer of at least 1, auto or null"),
        ("train.global_batch_size=0", "an integer of at least 1 or auto"),
        ("train.save_every=often", "an integer of at least 1 or null"),
        ("data.workers=-1", "an integer of at least 0 or null"),
        ("crop_ratio=0", "a number greater than 0 and at most 1"),
        ("optim.lr=fast", "a number greater than 0"),
        ("optim.lr=inf", "a finite number greater than 0"),
        ("optim.layer_decay=2", "a number greater than 0 and at most 1, or null"),
        ("optim.weight_decay=-0.1", "a number of at least 0"),
        ("train.ema_decay=1.0", "a number of at least 0 and less than 1, or null"),
        ("augment.hflip=[0.5]", "a number from 0 to 1"),
        # switches, strings and names
        ("deterministic=maybe", "true or false"),
        ("train.compile=null", "true or false"),
        ("name=null", "a string"),
        ("run_dir=7", "a string or null"),
        ("pretrained=[a]", "a string, true, false or null"),
        ("data.decode=tpu", "cpu or gpu"),
        ("model.patch_size=12", "2, 4, 8, 16 or 32"),
        ("model.patch_embed=quadratic", "conv or linear"),
        ("logger.name=paper", "none, csv, tensorboard, wandb or mlflow"),
        # lists and mappings
        ("resolutions=[]", "a list of one or more integers of at least 1, or null"),
        ("resolutions=[64,abc]", "a list of one or more integers of at least 1, or null"),
        ("resolutions=[64,0]", "a list of one or more integers of at least 1, or null"),
        ("resolutions=64", "a list of one or more integers of at least 1, or null"),
        ("augment.image_sizes=[]", "a list of one or more integers of at least 1, or null"),
        ("augment.scale=[0.5]", "a list of two numbers greater than 0"),
        ("augment.scale=[0.1,0.5,1.0]", "a list of two numbers greater than 0"),
        ("train.freeze=blocks.0", "a list of strings"),
        ("train.freeze=[1,true]", "a list of strings"),
        ("optim.options=3", "a mapping such as {key: value}"),
    ],
)
def test_a_refusal_says_what_would_be_accepted(argument: str, wanted: str) -> None:
    assert refusal(argument) == f"{argument}: must be {wanted}"


def test_a_value_of_the_evaluation_is_refused_alike() -> None:
    given = ("checkpoint=x", "model=xcit_n12", "data=folder", "data.root=x")
    assert refusal(*given, "weights=last", root="eval") == "weights=last: must be raw, ema or both"
    assert refusal(*given, "data.val_fraction=half", root="eval") == "data.val_fraction=half: must be a number"
    assert refusal(*given, "model.lpi=3", root="eval") == "model.lpi=3: must be true or false"


def test_a_value_is_shown_as_it_is_typed() -> None:
    assert refusal("seed={a:[1,null],b:true}").startswith("seed={a:[1,null],b:true}: must be")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (str | list[str] | None, "a string, a list of strings, or null"),
        (Annotated[int, Field(le=5)], "an integer of at most 5"),
        (Annotated[int, Field(gt=0, lt=8)], "an integer greater than 0 and at most 7"),
        (Annotated[float, Field(gt=0, lt=1)], "a number greater than 0 and less than 1"),
        (Annotated[list[float], Field(min_length=1, max_length=3)], "a list of 1 to 3 numbers"),
        (list[Annotated[int, Field(ge=2)] | Literal["auto"]], "a list of integers of at least 2 or auto"),
        (Literal["a"], "a"),
        (bool | Literal["some"], "true, false or some"),
        (complex, "a complex"),
        (dict[str, int] | None, "a mapping such as {key: value} or null"),
    ],
)
def test_the_words_follow_from_the_type(kind: Any, words: str) -> None:
    """For types that no key has yet."""
    assert accepted(create_model("Section", key=(kind, ...)).model_fields["key"]) == words
