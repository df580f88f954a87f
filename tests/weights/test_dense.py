"""The authors' detectors and segmenters load: each key of their files has its place, and the outputs are the same."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

import xcit
from xcit.class_names import ADE20K, COCO
from xcit.engine.task import Task
from xcit.storage import load_exactly
from xcit.weights.dense import backbone_alone, is_dense, key_table, whole_task

from ..models.examples import same, snapshot
from .authors_dense import OBJECTS, SURFACES, authors_content, backbone, detector, segmenter

MAKERS = {
    "mask_rcnn": detector,
    "semantic_fpn": lambda *args, **options: segmenter("semantic_fpn", *args, **options),
    "upernet": lambda *args, **options: segmenter("upernet", *args, **options),
}
each = pytest.mark.parametrize("kind", MAKERS)


def outputs(task: Task) -> list[torch.Tensor]:
    image = torch.randn(1, 3, 70, 100, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        found = task.predict(image, (140, 200))
    return list(found) if isinstance(found, tuple) else [found]


@each
@pytest.mark.parametrize("patch_size", [16, 8])
def test_a_file_of_the_authors_gives_the_same_outputs(kind: str, patch_size: int, tmp_path: Path) -> None:
    source, target = MAKERS[kind](patch_size), MAKERS[kind](patch_size, seed=1)
    torch.save(authors_content(source), tmp_path / "theirs.pth")
    content = torch.load(tmp_path / "theirs.pth", weights_only=True)
    weights = whole_task(content, "theirs.pth")
    load_exactly(target, weights.state("raw"), weights.origin)
    for wanted, found in zip(outputs(source), outputs(target), strict=True):
        assert torch.equal(wanted, found)
    assert len(outputs(source)[0]), "there is something to compare"
    # All is as it was, besides the background rows of boxes and masks, which nothing reads.
    for key, value in source.state_dict().items():
        rows = {"bbox_pred": 4, "mask_fcn_logits": 1}.get(key.split(".")[-2], 0) if "roi_heads" in key else 0
        loaded = target.state_dict()[key]
        assert torch.equal(loaded, value) if not rows else torch.equal(loaded[rows:], value[rows:]), key


@each
def test_each_key_is_listed_with_its_place(kind: str) -> None:
    task = MAKERS[kind]()
    content = authors_content(task)
    content["state_dict"] |= {
        "backbone.cls_token": torch.zeros(1),
        "backbone.cls_attn_blocks.0.norm1.bias": torch.zeros(1),
    }
    rows = key_table(content, "theirs.pth")
    assert [row["authors"] for row in rows] == list(content["state_dict"])
    assert {row["authors"] for row in rows if not row["ours"]} == {
        "backbone.cls_token",
        "backbone.cls_attn_blocks.0.norm1.bias",
    }
    places = [row["ours"] for row in rows if row["ours"]]
    assert sorted(places) == sorted(task.state_dict())


def test_class_k_of_the_authors_is_our_class_k_and_their_background_is_last() -> None:
    """mmdetection's box head, written by hand: softmax over K + 1 rows, of which the last one is the background."""
    source = detector()
    content = authors_content(source)
    # Not by the inverse above: rows that were never in our order.
    head = "roi_head.bbox_head"
    theirs = content["state_dict"] | {
        f"{head}.fc_cls.weight": torch.randn(4, 1024),
        f"{head}.fc_cls.bias": torch.randn(4),
        f"{head}.fc_reg.weight": torch.randn(12, 1024),
        f"{head}.fc_reg.bias": torch.randn(12),
    }
    target = detector(seed=1)
    load_exactly(target, whole_task({"state_dict": theirs}, "").state("raw"), "")

    pooled = torch.randn(6, 16, 7, 7)
    hidden = pooled.flatten(1)
    for number in (0, 1):
        name = f"{head}.shared_fcs.{number}"
        hidden = F.relu(hidden @ theirs[f"{name}.weight"].T + theirs[f"{name}.bias"])
    scores = (hidden @ theirs[f"{head}.fc_cls.weight"].T + theirs[f"{head}.fc_cls.bias"]).softmax(1)
    deltas = (hidden @ theirs[f"{head}.fc_reg.weight"].T + theirs[f"{head}.fc_reg.bias"]).unflatten(1, (3, 4))

    heads = target.heads.roi_heads
    proposals = torch.tensor([[400.0, 400.0, 410.0, 408.0]]).repeat(6, 1)
    logits, found = heads.box_predictor(heads.box_head(pooled))
    ours = logits.softmax(1)
    torch.testing.assert_close(ours[:, 1:], scores[:, :3])
    torch.testing.assert_close(ours[:, 0], scores[:, 3])
    boxes = heads.box_coder.decode(found, [proposals])[:, 1:]
    # mmdetection: stds 0.1, 0.1, 0.2, 0.2, sizes grow at most by 1000 / 16.
    dx, dy, dw, dh = (deltas * torch.tensor([0.1, 0.1, 0.2, 0.2])).unbind(2)
    limit = torch.tensor(1000 / 16).log()
    width, height = 10 * dw.clamp(max=limit).exp(), 8 * dh.clamp(max=limit).exp()
    x, y = 405 + 10 * dx, 404 + 8 * dy
    wanted = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 2)
    torch.testing.assert_close(boxes, wanted, rtol=1e-4, atol=1e-3)


def test_their_anchors_have_our_order() -> None:
    """Row 3 · position + ratio of mmdetection's proposals: heights of 0.5, 1 and 2 widths, then x, y, width, height."""
    theirs = authors_content(detector())["state_dict"]
    for name, rows in (("rpn_cls", 3), ("rpn_reg", 12)):
        theirs[f"rpn_head.{name}.weight"] = torch.zeros(rows, 16, 1, 1)
        theirs[f"rpn_head.{name}.bias"] = torch.arange(float(rows))
    target = detector(seed=1)
    load_exactly(target, whole_task({"state_dict": theirs}, "").state("raw"), "")
    rpn = target.heads.rpn
    maps = [torch.randn(1, 16, 2, 3)]
    (scores,), (deltas,) = rpn.head(maps)
    anchors = rpn.anchor_generator.of_map(maps[0], 4)
    ratios = ((anchors[:, 3] - anchors[:, 1]) / (anchors[:, 2] - anchors[:, 0])).view(6, 3)
    torch.testing.assert_close(ratios, torch.tensor([[0.5, 1.0, 2.0]]).repeat(6, 1))
    assert torch.equal(scores[0].permute(1, 2, 0).reshape(6, 3), torch.arange(3.0).repeat(6, 1))
    assert torch.equal(deltas[0].permute(1, 2, 0).reshape(18, 4), torch.arange(12.0).view(3, 4).repeat(6, 1))


@each
def test_a_file_says_its_task_its_classes_and_its_images(kind: str) -> None:
    weights = whole_task(authors_content(MAKERS[kind]()), "theirs.pth")
    detects = kind == "mask_rcnn"
    assert weights.task == ({"name": "detect"} if detects else {"name": "segment", "head": kind})
    assert weights.classes == list(OBJECTS if detects else SURFACES)
    preprocessing = weights.preprocessing(backbone(16))
    assert (preprocessing.resize, preprocessing.crop_ratio) == ("shortest", 1.0)
    assert preprocessing.size == ((800, 1333) if detects else (512, 2048))
    assert preprocessing.mean == (0.485, 0.456, 0.406)


def test_a_file_without_an_auxiliary_head_says_so() -> None:
    source = segmenter("upernet", aux_weight=0.0)
    weights = whole_task(authors_content(source), "theirs.pth")
    assert weights.task == {"name": "segment", "head": "upernet", "aux_weight": 0.0}
    load_exactly(segmenter("upernet", seed=1, aux_weight=0.0), weights.state("raw"), weights.origin)


def test_files_without_names_have_those_of_the_benchmarks() -> None:
    categories = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert list(COCO) == [name for name in categories if name not in ("__background__", "N/A")]
    assert len(set(ADE20K)) == len(ADE20K) == 150
    heads = {"rpn_head.rpn_cls.bias": torch.zeros(3), "backbone.fpn1.0.bias": torch.zeros(3)}
    for rows, classes in ((81, list(COCO)), (80, None)):
        state = heads | {"roi_head.bbox_head.fc_cls.bias": torch.zeros(rows)}
        assert whole_task(state, "").classes == classes
        assert whole_task({"meta": {"CLASSES": ["bed "] * (rows - 1)}, "state_dict": state}, "").classes == ["bed"] * (
            rows - 1
        )
    decoder = {"backbone.fpn1.0.bias": torch.zeros(3), "decode_head.conv_seg.bias": torch.zeros(150)}
    assert whole_task(decoder, "").classes == list(ADE20K)


def test_counters_of_batches_may_be_missing() -> None:
    content = authors_content(segmenter("upernet"))
    counted = content["state_dict"]
    content["state_dict"] = {key: value for key, value in counted.items() if "num_batches" not in key}
    assert len(content["state_dict"]) < len(counted)
    load_exactly(segmenter("upernet", seed=1), whole_task(content, "theirs.pth").state("raw"), "theirs.pth")


def test_other_files_are_not_taken_for_one() -> None:
    task = segmenter("upernet")
    assert not is_dense(task.state_dict()) and not is_dense({"state_dict": task.state_dict()})
    assert not is_dense({"model": {}}) and not is_dense({}) and not is_dense({"state_dict": 3})
    assert not is_dense({"backbone.cls_token": torch.zeros(1)})
    assert is_dense({f"module.{key}": value for key, value in authors_content(task)["state_dict"].items()})


@each
def test_what_is_missing_too_much_or_of_other_classes_is_listed(kind: str) -> None:
    content = authors_content(MAKERS[kind]())
    state = content["state_dict"]
    gone = next(key for key in state if key.endswith(("rpn_cls.bias", "decode_head.conv_seg.bias")))
    content["state_dict"] = {key: value for key, value in state.items() if key != gone} | {"ema.more": torch.zeros(1)}
    target = MAKERS[kind](seed=1)
    before = snapshot(target)
    with pytest.raises(xcit.InputError, match=r"theirs\.pth: belongs to another architecture") as caught:
        load_exactly(target, whole_task(content, "theirs.pth").state("raw"), "theirs.pth")
    assert "1 missing: " in str(caught.value) and "1 unexpected: ema.more" in str(caught.value)
    assert same(target.state_dict(), before)


def test_the_backbone_alone_starts_another_model() -> None:
    source = detector()
    content = authors_content(source)
    assert "backbone.pos_embeder.token_projection.bias" in content["state_dict"]
    alone = backbone_alone(content, "").state("raw")
    assert same(
        alone, {k.removeprefix("model.model."): v for k, v in source.state_dict().items() if "model.model." in k}
    )
    target = backbone(16)
    with pytest.warns(xcit.Notice, match="has no cls_attn_blocks, cls_token, norm, which detection and seg") as told:
        xcit.load_weights(target, content)
    assert len(told) == 1
    assert all(torch.equal(target.state_dict()[key], value) for key, value in alone.items())
