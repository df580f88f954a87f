"""Mask R-CNN: anchors, samples, aligned features, losses that add up over shares of a batch, and pasted masks."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import roi_align

from xcit.models.dense.mask_rcnn import Detections, MaskRCNN, paste
from xcit.models.dense.pyramid import STRIDES
from xcit.models.dense.regions import AlignedPool, AnchorMatcher, Anchors, SeededSampler, cut_masks, on_image

WIDTH = 6
OPTIONS = {"channels": 8, "anchor_scale": 4.0, "proposals": 20}
OPTIONS |= {"score_threshold": 0.05, "nms_threshold": 0.5, "max_detections": 100}


def detector(**options: Any) -> MaskRCNN:
    torch.manual_seed(0)
    model = MaskRCNN(WIDTH, 3, **OPTIONS | options)
    model.rpn.fg_bg_sampler.number, model.roi_heads.fg_bg_sampler.number = 16, 12
    return model


def anchors_of(side: int) -> Tensor:
    """Those of a square image, at a scale of 8."""
    maps = [torch.zeros(1, 4, -(-side // stride), -(-side // stride)) for stride in (*STRIDES, 64)]
    (anchors,) = Anchors((*STRIDES, 64), 8.0)(ImageList(maps[0], [(side, side)]), maps)
    return anchors


def maps_of(images: int, size: tuple[int, int] = (64, 96)) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(images, WIDTH, size[0] // s, size[1] // s, generator=random) for s in STRIDES]


def target(*boxes: tuple[float, float, float, float], size: tuple[int, int] = (64, 96)) -> dict[str, Tensor]:
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[int(top) : int(bottom), int(left) : int(right)] = 1
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.arange(len(boxes)) % 3, "masks": masks}


TARGETS = [target((10, 8, 40, 50), (50, 20, 80, 60)), target((4, 4, 20, 20)), target(), target((30, 10, 90, 62))]


def means(sums: dict[str, Any], counts: dict[str, int] | None = None) -> Tensor:
    return torch.stack([s.total / max(1, counts[name] if counts else s.number) for name, s in sums.items()]).sum()


# Anchors.


def test_anchors_are_the_authors() -> None:
    """Not rounded, and with the strides as they are where a map is larger than a 64th of the image."""
    anchors = anchors_of(96)
    assert len(anchors) == 3 * (24**2 + 12**2 + 6**2 + 3**2 + 2**2)
    w = 32 * math.sqrt(2) / 2
    expected = torch.tensor([[-w, -w / 2, w, w / 2], [-16, -16, 16, 16], [-w / 2, -w, w / 2, w]])
    torch.testing.assert_close(anchors[:3], expected)
    torch.testing.assert_close(anchors[3:6], expected + torch.tensor([4.0, 0, 4, 0]))
    torch.testing.assert_close(anchors[-2], torch.tensor([64.0 - 256, 64 - 256, 64 + 256, 64 + 256]))


def test_an_object_gets_its_best_anchor_only_if_it_overlaps_enough() -> None:
    overlaps = torch.tensor([[0.1, 0.35, 0.35, 0.2], [0.8, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 0.25]])
    assert AnchorMatcher(0.7, 0.3, allow_low_quality_matches=True)(overlaps).tolist() == [1, 0, 0, -1]


def test_anchors_of_the_padding_are_not_sampled() -> None:
    alone, within = anchors_of(64), anchors_of(160)
    assert on_image(alone, (50, 64), 32).all()
    assert torch.equal(within[on_image(within, (50, 64), 32)], alone)
    network: Any = detector().rpn
    (labels,), _ = network.assign_targets_to_anchors([within], [{"boxes": torch.zeros(0, 4), "size": (50, 64)}])
    assert torch.equal(labels == 0, on_image(within, (50, 64), 32)) and (labels[labels != 0] == -1).all()


# Samples.


def chosen(labels: Tensor, seed: int, use: int = 0) -> list[Tensor]:
    """Numbers of the chosen positives and negatives, of the second image."""
    sampler = SeededSampler(16, 0.5, use)
    sampler.seeds = (99, seed)
    return [masks[1].nonzero().flatten() for masks in sampler([torch.zeros(7), labels])]


def test_samples_depend_on_the_seed_alone() -> None:
    labels = torch.tensor([0.0] * 50 + [1] * 30 + [-1] * 20)
    first = chosen(labels, 5)
    torch.manual_seed(99)
    assert all(map(torch.equal, first, chosen(labels, 5)))
    assert not torch.equal(first[1], chosen(labels, 6)[1])
    assert not torch.equal(first[1], chosen(labels, 5, use=1)[1]), "anchors and regions draw different numbers"
    assert detector().rpn.fg_bg_sampler.use != detector().roi_heads.fg_bg_sampler.use
    assert len(first[0]) == len(first[1]) == 8
    assert (labels[first[0]] == 1).all() and (labels[first[1]] == 0).all()


@pytest.mark.parametrize(("positives", "negatives", "found"), [(2, 50, (2, 14)), (50, 3, (8, 3)), (0, 5, (0, 5))])
def test_negatives_fill_up_what_positives_lack(positives: int, negatives: int, found: tuple[int, int]) -> None:
    assert tuple(map(len, chosen(torch.tensor([1.0] * positives + [0.0] * negatives), 0))) == found


# Features and targets of regions.


def test_features_are_those_of_the_aligned_operator_on_the_right_level() -> None:
    maps = [torch.randn(2, 5, 512 // s, 512 // s) for s in STRIDES]
    sides = [20.0, 111.9, 112.1, 223.9, 224.1, 447.9, 448.1, 500.0]
    regions = [torch.tensor([[3.3, 5.1, 3.3 + side, 5.1 + side] for side in sides]), torch.tensor([[0.0, 0, 50, 60]])]
    found = AlignedPool(7, STRIDES)(dict(enumerate([*maps, torch.zeros(0)])), regions, ())
    for row, level in enumerate([0, 0, 1, 1, 2, 2, 3, 3]):
        box = torch.cat([torch.zeros(1, 1), regions[0][row : row + 1]], dim=1)
        expected = roi_align(maps[level], box, 7, spatial_scale=1 / STRIDES[level], sampling_ratio=0, aligned=True)
        torch.testing.assert_close(found[row], expected[0])
    expected = roi_align(maps[0], [regions[1][:0], regions[1]], 7, spatial_scale=1 / 4, aligned=True)
    torch.testing.assert_close(found[-1], expected[0])


def test_boxes_come_back_from_their_offsets() -> None:
    coder: Any = detector().roi_heads.box_coder
    assert isinstance(coder, BoxCoder) and coder.weights == (10.0, 10.0, 5.0, 5.0)
    boxes, regions = torch.tensor([[3.0, 5, 30, 70]]), torch.tensor([[6.0, 2, 40, 60]])
    torch.testing.assert_close(coder.decode_single(coder.encode_single(boxes, regions), regions), boxes)


def test_mask_targets_are_the_masks_in_their_regions() -> None:
    masks = torch.zeros(2, 56, 56, dtype=torch.uint8)
    masks[0, :, 28:] = 1
    masks[1, :28] = 1
    found = cut_masks(masks, torch.tensor([1, 0]), torch.tensor([[0.0, 0, 56, 56], [14, 0, 42, 56]]), 28)
    assert found[0, :14].all() and not found[0, 14:].any()
    assert found[1, :, 14:].all() and not found[1, :, :14].any()


# Losses.


def test_shares_of_a_batch_give_the_gradients_of_the_whole_batch() -> None:
    """With the counts of all shares: so several processes compute what one process computes."""
    whole, maps, seeds, sizes = detector(), maps_of(4), [3, 1, 4, 1], [(64, 96)] * 4
    shared = copy.deepcopy(whole)
    sums = whole.losses(maps, sizes, TARGETS, seeds)
    means(sums).backward()
    parts = []
    for rows in (slice(0, 2), slice(2, 4)):
        torch.manual_seed(rows.start)
        parts.append(shared.losses([x[rows] for x in maps], sizes[rows], TARGETS[rows], seeds[rows]))
    counts = {name: sum(part[name].number for part in parts) for name in sums}
    assert counts == {name: loss.number for name, loss in sums.items()}
    assert counts["masks"] > 0 and parts[0]["masks"].number != parts[1]["masks"].number
    for part in parts:
        means(part, counts).backward()
    for (name, a), b in zip(whole.named_parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_losses_are_sums_over_their_samples() -> None:
    sums = detector().losses(maps_of(4), [(64, 96)] * 4, TARGETS, [1, 2, 3, 4])
    assert list(sums) == ["rpn_objectness", "rpn_boxes", "classes", "boxes", "masks"]
    assert sums["rpn_objectness"].number == sums["rpn_boxes"].number == 4 * 16
    assert sums["classes"].number == sums["boxes"].number == 4 * 12
    assert sums["masks"].total / sums["masks"].number < 1.5, "a mean over the points of each mask"


@pytest.mark.parametrize("images", [1, 2])
def test_images_without_objects_give_every_parameter_a_gradient(images: int) -> None:
    """DistributedDataParallel waits for each of them."""
    model = detector()
    sums = model.losses(maps_of(images), [(60, 90)] * images, [TARGETS[2]] * images, [1, 2][:images])
    assert sums["masks"] == (0, 0) and sums["boxes"].total == 0 and sums["classes"].number
    means(sums).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert not model.roi_heads.mask_predictor.conv5_mask.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_computed_in_fp32_under_autocast(dtype: torch.dtype) -> None:
    model = detector()
    exact = model.losses(maps_of(4), [(64, 96)] * 4, TARGETS, [1, 2, 3, 4])
    with torch.autocast("cpu", dtype):
        sums = model.losses(maps_of(4), [(64, 96)] * 4, TARGETS, [1, 2, 3, 4])
        found = detect(model, (64, 96))
    assert {s.total.dtype for s in sums.values()} == {torch.float32} == {found.boxes.dtype, found.masks.dtype}
    torch.testing.assert_close(means(sums), means(exact), rtol=0.03, atol=0)


# Detections.


def detect(model: MaskRCNN, size: tuple[int, int]) -> Detections:
    (found,) = model.eval().detect(maps_of(1), [size])
    return found


def test_boxes_are_exact_under_autocast() -> None:
    """In half precision they would be off by several pixels."""
    model = detector(score_threshold=0.0, nms_threshold=1.0)
    model.rpn.head.bbox_pred.weight.data.zero_()
    features = model.eval().features(maps_of(1, (640, 960)))
    images = ImageList(maps_of(1, (640, 960))[0], [(640, 960)])
    with torch.autocast("cpu", torch.bfloat16):
        (proposals,), _ = model.rpn(images, features)
    assert proposals.dtype == torch.float32
    (anchors,) = model.rpn.anchor_generator(images, list(features.values()))
    inside = anchors.clamp_min(0).minimum(torch.tensor([960.0, 640, 960, 640]))
    assert (proposals[:, None] - inside).abs().amax(dim=2).amin(dim=1).max() < 1e-3


def test_detections_are_in_the_image_best_first() -> None:
    model = detector(score_threshold=0.0, max_detections=7).eval()
    found = detect(model, (60, 90))
    assert [tuple(x.shape) for x in found] == [(7, 4), (7,), (7,), (7, 28, 28)]
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert (found.boxes >= 0).all() and (found.boxes <= torch.tensor([90.0, 60, 90, 60])).all()
    assert found.labels.min() >= 0 and found.labels.max() <= 2
    assert [len(x) for x in detect(detector(score_threshold=1.0), (60, 90))] == [0, 0, 0, 0]


def test_the_authors_weights_fit() -> None:
    """The shapes of mmdetection's Mask R-CNN with 3 classes, without the background's rows."""
    shapes = {name: tuple(p.shape) for name, p in MaskRCNN(384, 3, **OPTIONS | {"channels": 256}).named_parameters()}
    expected = {
        "neck.inner_blocks.3.0.weight": (256, 384, 1, 1),
        "neck.layer_blocks.0.0.weight": (256, 256, 3, 3),
        "rpn.head.conv.0.0.weight": (256, 256, 3, 3),
        "rpn.head.cls_logits.weight": (3, 256, 1, 1),
        "rpn.head.bbox_pred.weight": (12, 256, 1, 1),
        "roi_heads.box_head.fc6.weight": (1024, 256 * 49),
        "roi_heads.box_head.fc7.weight": (1024, 1024),
        "roi_heads.box_predictor.cls_score.weight": (1 + 3, 1024),
        "roi_heads.box_predictor.bbox_pred.weight": (4 * (1 + 3), 1024),
        "roi_heads.mask_head.3.0.weight": (256, 256, 3, 3),
        "roi_heads.mask_predictor.conv5_mask.weight": (256, 256, 2, 2),
        "roi_heads.mask_predictor.mask_fcn_logits.weight": (1 + 3, 256, 1, 1),
    }
    assert expected.items() <= shapes.items()
    assert len(shapes) == 2 * (4 + 4 + 3 + 2 + 2 + 4 + 2)


# Masks in pixels.


def blob() -> Tensor:
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    return torch.sigmoid(8 - ((x - 12) ** 2 + 1.5 * (y - 15) ** 2).sqrt())


@pytest.mark.parametrize("box", [(8.0, 6, 64, 48), (-10.0, -6, 40, 50), (50.0, 30, 120, 90), (20.0, 20, 29, 26)])
def test_pasted_masks_are_torchvisions_but_for_its_rounding(box: tuple[float, float, float, float]) -> None:
    corners = torch.tensor(box)
    mine = paste(blob(), corners, (70, 100))
    theirs = paste_masks_in_image(blob()[None, None], corners[None], (70, 100))[0, 0] >= 0.5
    assert mine.shape == (70, 100) and mine.dtype == torch.bool and mine.any()
    differing = (mine ^ theirs).sum() / (mine | theirs).sum()
    assert differing < 0.08 if mine.sum() > 100 else differing < 0.25


def test_a_mask_is_interpolated_between_the_centers_of_its_points() -> None:
    """Exactly, in a box of 28 × 28 pixels, and by half a point in one that is shifted by half a pixel."""
    mask = torch.rand(28, 28)
    pasted = paste(mask, torch.tensor([10.0, 5, 38, 33]), (50, 60))
    assert torch.equal(pasted[5:33, 10:38], mask >= 0.5) and pasted.sum() == (mask >= 0.5).sum()
    between = paste(mask, torch.tensor([10.5, 5, 38.5, 33]), (50, 60))
    assert torch.equal(between[5:33, 11:38], (mask[:, :-1] + mask[:, 1:]) / 2 >= 0.5)


def test_a_box_outside_of_the_image_pastes_nothing() -> None:
    for box in ([-20.0, -20, -5, -5], [70.0, 3, 80, 9], [5.0, 5, 5, 5]):
        assert not paste(torch.ones(28, 28), torch.tensor(box), (50, 60)).any()
