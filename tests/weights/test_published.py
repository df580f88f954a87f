"""The table of published weights agrees with the authors' and timm's, and each file is found by all its names."""

import re
import urllib.parse
from collections import Counter

import pytest
import timm

import xcit
from xcit.weights.published import (
    BY_FILE,
    BY_TIMM_NAME,
    DENSE,
    HOST,
    PUBLISHED,
    PUBLISHED_DENSE,
    Published,
    find_published,
    long_name,
)

from ..conftest import ROOT

ENTRIES = list(PUBLISHED.values())
CLASSIFIERS = [entry for entry in ENTRIES if entry.timm_name]
FILE_NAME = re.compile(
    r"xcit_(nano_12|tiny_12|tiny_24|small_12|small_24|medium_24|large_24)_p(16|8)_(224|224_dist|384_dist)\.pth"
    r"|xcit_(small_12|medium_24)_cp(16|8)_dino\.pth"
)


def test_there_are_42_classifiers_and_4_backbones_each_once() -> None:
    assert len(ENTRIES) == 46
    assert Counter(entry.tag for entry in ENTRIES) == {
        "fb_in1k": 14,
        "fb_dist_in1k": 14,
        "fb_dist_in1k_384": 14,
        "fb_dino": 4,
    }
    for values in (
        [entry.name for entry in ENTRIES],
        [entry.url for entry in ENTRIES],
        [entry.file for entry in ENTRIES],
    ):
        assert len(set(values)) == 46
    assert len(BY_TIMM_NAME) == 42
    assert xcit.list_pretrained() == [entry.name for entry in ENTRIES]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_entry_is_found_by_all_its_names(entry: Published) -> None:
    assert FILE_NAME.fullmatch(entry.file)
    assert entry.url == urllib.parse.urljoin(HOST, entry.file)
    for name in (entry.name, entry.file, entry.file.removesuffix(".pth")):
        assert find_published(name) is entry
    if entry.timm_name:
        assert find_published(entry.timm_name) is entry
        assert find_published(f"timm/{entry.timm_name}") is entry
    assert entry.model in xcit.list_models()
    assert entry.name in xcit.list_pretrained(entry.model)
    digits = re.search(r"_c?p(\d+)_(\d+|dino)", entry.file)
    assert digits and digits[1] == str(entry.patch_size)
    assert digits[2] in ("dino", str(entry.input_size))


@pytest.mark.parametrize("entry", CLASSIFIERS, ids=lambda entry: entry.name)
def test_timm_has_the_same_under_that_name(entry: Published) -> None:
    """timm evaluates the weights with the same size and crop, and names the same file as their source."""
    theirs = timm.get_pretrained_cfg(entry.timm_name, allow_unregistered=False)
    assert theirs is not None and theirs.tag == str(entry.timm_name).partition(".")[2]
    assert theirs.input_size == (3, entry.input_size, entry.input_size)
    assert theirs.crop_pct == 1.0
    assert theirs.num_classes == 1000
    assert theirs.url == entry.url


def test_timm_has_no_more_of_them() -> None:
    assert set(BY_TIMM_NAME) == set(timm.list_pretrained("xcit_*"))


@pytest.mark.parametrize(
    ("name", "top1"),
    [
        ("xcit_n12_p16.fb_in1k", 69.9),
        ("xcit_t24_p8.fb_dist_in1k", 82.6),
        ("xcit_s12_p16.fb_in1k", 82.0),
        ("xcit_s12_p16.fb_dist_in1k", 83.3),
        ("xcit_s12_p16.fb_dist_in1k_384", 84.7),
        ("xcit_m24_p16.fb_dist_in1k_384", 85.4),
        ("xcit_l24_p8.fb_dist_in1k_384", 86.0),
    ],
)
def test_accuracies_are_the_papers(name: str, top1: float) -> None:
    assert PUBLISHED[name].top1 == top1


def test_accuracies_of_backbones_are_the_papers() -> None:
    found = {entry.file: (entry.knn, entry.linear) for entry in ENTRIES if entry.tag == "fb_dino"}
    assert found == {
        "xcit_small_12_cp16_dino.pth": (76.0, 77.8),
        "xcit_small_12_cp8_dino.pth": (77.1, 79.2),
        "xcit_medium_24_cp16_dino.pth": (76.4, 78.8),
        "xcit_medium_24_cp8_dino.pth": (77.9, 80.3),
    }


def test_there_are_8_detectors_and_16_segmenters_with_the_papers_figures() -> None:
    assert Counter(entry.tag for entry in PUBLISHED_DENSE.values()) == {
        "fb_maskrcnn_coco": 8,
        "fb_sem_fpn_ade20k": 8,
        "fb_upernet_ade20k": 8,
    }
    assert len(BY_FILE) == 46 + 24
    boxes = find_published("maskrcnn_xcit_medium_24_p8")
    assert boxes and boxes.url == "https://dl.fbaipublicfiles.com/xcit/coco/maskrcnn_xcit_medium_24_p8.pth"
    assert (boxes.box_map, boxes.mask_map, boxes.miou, boxes.input_size) == (48.5, 43.7, None, 800)
    upernet = find_published("files/upernet_xcit_small_24_p16.pth")
    assert upernet and upernet.url == "https://dl.fbaipublicfiles.com/xcit/ade/upernet_xcit_small_24_p16.pth"
    assert (upernet.miou, upernet.top1, upernet.input_size) == (46.9, None, 512)
    assert upernet.options == {"name": "xcit_s24", "patch_size": 16, "image_size": 512}
    assert (DENSE["xcit_m24", 16][3], DENSE["xcit_m24", 8][3]) == (47.6, 48.4)
    for entry in PUBLISHED_DENSE.values():
        assert re.fullmatch(
            r"(maskrcnn|sem_fpn|upernet)_xcit_(tiny_12|small_12|small_24|medium_24)_p(8|16)\.pth", entry.file
        )
        for name in (entry.name, entry.file, entry.file.removesuffix(".pth")):
            assert find_published(name) is entry


def test_the_page_of_weights_states_these_figures() -> None:
    page = (ROOT / "docs/weights.md").read_text()
    for (model, patch_size), figures in DENSE.items():
        name = long_name(model, patch_size).removeprefix("xcit_")
        assert f"| `…{name}` | {' | '.join(f'{figure:.1f}' for figure in figures)} |" in page


@pytest.mark.parametrize(
    "name",
    ["", "/", ".pth", "xcit_s12", "xcit_s12_p16", "xcit_small_12_p16", "fb_in1k", "xcit_small_12_p16_224.fb_in22k"],
)
def test_part_of_a_name_is_none(name: str) -> None:
    assert find_published(name) is None
