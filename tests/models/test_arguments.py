"""A wrong argument is answered with one line that names it and what would be accepted."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import xcit

from .examples import tiny

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"depht": 3}, r"^depht=3: model=xcit_n12 has no such argument; did you mean depth\? \(it has dim, depth, "),
    ({"depth": "a"}, "^depth='a': must be a whole number of at least 1$"),
    ({"depth": 2.0}, "^depth=2.0: must be a whole number of at least 1$"),
    ({"depth": True}, "^depth=True: must be a whole number"),
    ({"dim": "x"}, "^dim='x': must be a whole number"),
    ({"dim": 4, "heads": 1}, "^dim=4: must be at least patch_size / 2 = 8"),
    ({"patch_size": 0}, "^patch_size=0: must be one of 2, 4, 8, 16, 32$"),
    ({"patch_size": "16"}, "^patch_size='16': must be one of"),
    ({"patch_size": [16]}, r"^patch_size=\[16\]: must be one of"),
    ({"in_chans": 0}, "^in_chans=0: must be a whole number of at least 1$"),
    ({"image_size": 0}, r"^image_size=0: must be a whole number of at least 1, or two: \(height, width\)$"),
    ({"num_classes": "10"}, "^num_classes='10': must be a whole number of at least 0$"),
    ({"num_classes": -1}, "^num_classes=-1: must be a whole number of at least 0$"),
    ({"drop_path_rate": "a"}, "^drop_path_rate='a': must be at least 0 and less than 1$"),
    ({"drop_rate": math.nan}, "^drop_rate=nan: must be at least 0 and less than 1$"),
    ({"layer_scale_init": math.inf}, "^layer_scale_init=inf: must be a finite number$"),
    ({"tokens_norm": 3}, "^tokens_norm=3: must be True or False$"),
    ({"lpi": "no"}, "^lpi='no': must be True or False$"),
    ({"global_pool": "max"}, "^global_pool='max': must be one of token, avg, ''$"),
    ({"pool": "average", "global_pool": "token"}, "^global_pool='token': needs the class token"),
    ({"img_size": (224, 160)}, r"^img_size=\(224, 160\): must be one number"),
    ({"img_size": 32, "image_size": 32}, "^img_size=32, image_size=32: are the same argument"),
    ({"mlp_ratio": 3}, "^mlp_ratio=3: must be 4"),
    ({"use_pos_embed": True, "position": "none"}, "^use_pos_embed=True, position='none': are the same argument"),
    ({"use_pos_embed": "no"}, "^use_pos_embed='no': must be True or False$"),
    ({"device": "gpu"}, "^device='gpu': Expected one of cpu, cuda"),
    ({"dtype": "bf16"}, "^dtype='bf16': must be a floating-point type"),
    ({"dtype": torch.int8}, "^dtype=torch.int8: must be a floating-point type"),
    ({"pretrained": 3}, "^pretrained=3: must be True, False or the name"),
    ({"pretrained": "a", "checkpoint_path": "b"}, "^checkpoint_path=b, pretrained=a: give one of them"),
    ({"features_only": True, "out_indices": 40}, "^indices=40: the last 40 layers are not in 1 … 12"),
    ({"features_only": True, "out_indices": 0}, "^indices=0: the last 0 layers are not in 1 … 12"),
    ({"features_only": True, "out_indices": ()}, r"^out_indices=\(\): must name at least one layer$"),
    ({"out_indices": (1, 3)}, r"^out_indices=\(1, 3\): needs features_only=True$"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_argument_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(xcit.InputError, match=message) as caught:
        xcit.create_model("xcit_n12", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: xcit.create_model(3), "^model=3: must be a name"),  # type: ignore[arg-type]
        (lambda: xcit.create_model("timm", name="test_vit", foo=1), "^foo=1: model=timm has no such argument"),
        (
            lambda: xcit.XCiT(dim=32, depth=1, heads=2, layer_scale_init=1.0, tokens_norm=True, patchsize=8),  # type: ignore[call-arg]
            r"^patchsize=8: XCiT has no such argument; did you mean patch_size\?",
        ),
        (lambda: xcit.XCiT(384), r"^XCiT\(384,\): takes arguments by name \(dim, depth, "),  # type: ignore[misc]
        (
            lambda: xcit.create_model("xcit_s12_p16.fb_in1"),
            r"^model=xcit_s12_p16\.fb_in1: unknown; did you mean xcit_s12_p16\.fb_in1k\?",
        ),
        (lambda: tiny().reset_classifier("3"), "^num_classes='3': must be a whole number"),  # type: ignore[arg-type]
        (lambda: tiny().reset_classifier(3, "max"), "^global_pool='max': must be one of token, avg, ''"),
        (lambda: tiny(pool="average").reset_classifier(3, "token"), "^global_pool='token': needs the class token"),
    ],
)
def test_so_are_those_of_other_functions(build: Callable[[], object], message: str) -> None:
    with pytest.raises(xcit.InputError, match=message):
        build()


def test_the_defaults_are_those_of_timms_class() -> None:
    with torch.device("meta"):
        ours, theirs = xcit.XCiT(), timm.models.xcit.Xcit()
    assert [(name, p.shape) for name, p in ours.named_parameters()] == [
        (name, p.shape) for name, p in theirs.named_parameters()
    ]


def test_whole_numbers_of_other_libraries_are_accepted() -> None:
    import numpy as np

    assert len(xcit.create_model("xcit_n12", depth=np.int64(2), device="meta").blocks) == 2


def test_a_subclass_may_have_its_own_arguments(tmp_path: Path) -> None:
    class Mine(xcit.XCiT):
        def __init__(self, width: int, **rest: Any) -> None:
            super().__init__(dim=width, depth=1, heads=2, layer_scale_init=1.0, tokens_norm=True, **rest)

    assert Mine(width=32, num_classes=3).num_features == 32
    Mine(width=32, num_classes=3).save_pretrained(tmp_path)
    assert Mine.from_pretrained(tmp_path).num_classes == 3
    with pytest.raises(xcit.InputError, match=r"^depth='a'"):
        xcit.XCiT(dim=32, depth="a", heads=2, layer_scale_init=1.0, tokens_norm=True)  # type: ignore[arg-type]


def test_from_pretrained_says_what_takes_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").touch()
    for path in (tmp_path, tmp_path / "checkpoints" / "last.pt"):
        with pytest.raises(xcit.InputError, match=r"no folder of save_pretrained; xcit\.load takes run folders"):
            xcit.XCiT.from_pretrained(path)


def test_from_pretrained_names_what_a_configuration_lacks(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"num_classes": 7}')
    with pytest.raises(xcit.InputError, match=r"config\.json lacks dim, depth, heads, layer_scale_init, tokens_norm"):
        xcit.XCiT.from_pretrained(tmp_path)
