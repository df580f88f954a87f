"""Segmentation: its losses, exact over shares of a batch; what it learns; its inference and its options."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from xcit.engine import distributed
from xcit.engine.ema import make_ema
from xcit.engine.loop import evaluate
from xcit.engine.task import Target
from xcit.errors import InputError
from xcit.models.fast.checkpointing import set_checkpointing
from xcit.preprocessing import Preprocessing
from xcit.tasks.segment import Segment

from ..conftest import in_two_processes
from .small_segment import CLASSES, batch, task, whole_masks

HEADS = ("semantic_fpn", "upernet")
CPU = torch.device("cpu")


@pytest.mark.parametrize("head", HEADS)
def test_learns_a_few_images_by_heart(head: str) -> None:
    segment, learnt = task(head=head, channels=64), batch()
    pictures = [torch.zeros(64, 64, 3, dtype=torch.uint8)] * 4
    examples = SimpleNamespace(images=learnt.images.split(1), masks=list(learnt.masks), pictures=pictures)
    optimizer = torch.optim.AdamW(segment.parameters(), lr=1e-2)
    for _ in range(60):
        segment(learnt)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    found = evaluate(segment, [examples], CPU, "fp32")
    assert found["miou"] > 80 and found["loss"] < 0.3, found


@pytest.mark.parametrize("size", [(64, 64), (40, 52)])
def test_the_loss_is_the_mean_cross_entropy_of_labelled_pixels(size: tuple[int, int]) -> None:
    segment, examples = task(head="upernet").eval(), batch(2, *size)
    maps = segment.model(examples.images)
    means = []
    for head in (segment.decode_head, segment.auxiliary_head):
        logits = F.interpolate(head(maps), size=(64, 64), mode="bilinear")[..., : size[0], : size[1]]
        labelled = examples.masks >= 0
        log_p = logits.log_softmax(dim=1).permute(0, 2, 3, 1)[labelled]
        means.append(-log_p.gather(1, examples.masks[labelled][:, None]).mean().item())
    losses = segment(examples)
    assert list(losses) == ["loss", "main", "aux"]
    assert losses["main"].item() == pytest.approx(means[0], rel=1e-5)
    assert losses["aux"].item() == pytest.approx(means[1], rel=1e-5)
    assert losses["loss"].item() == pytest.approx(means[0] + 0.4 * means[1], rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"head": "upernet"}, {"head": "upernet", "aux_weight": 0.0}])
def test_every_parameter_gets_a_gradient_which_is_0_without_labelled_pixels(options: dict) -> None:
    segment, examples = task(**options), batch()
    segment(examples)["loss"].backward()
    assert [name for name, p in segment.named_parameters() if p.grad is None] == []
    segment.zero_grad()
    examples.masks[:] = -1
    losses = segment(examples)
    losses["loss"].backward()
    assert losses["loss"].item() == 0
    assert [name for name, p in segment.named_parameters() if p.grad is None or p.grad.any()] == []


def unequal_shares() -> tuple[SimpleNamespace, list[SimpleNamespace]]:
    """A batch, and its two halves, of which one has few labelled pixels."""
    whole = batch()
    whole.masks[2:, :50] = -1
    halves = [slice(0, 2), slice(2, 4)]
    return whole, [SimpleNamespace(images=whole.images[half], masks=whole.masks[half]) for half in halves]


def of_two_processes(rank: int, folder: str) -> None:
    """Checks losses, gradients and metrics in one of two processes against those of one process."""
    torch.set_num_threads(1)
    segment = task(head="upernet")
    whole, halves = unequal_shares()
    losses = segment(whole)
    losses["loss"].backward()
    expected = {name: parameter.grad for name, parameter in segment.named_parameters()}
    alone = task(head="upernet")
    measured = evaluate(alone, [whole_masks(range(3))], CPU, "fp32")

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    distributed.synchronise_batchnorm(alone, CPU)
    ours = evaluate(alone, [whole_masks(range(2)), whole_masks(range(2, 3))][rank : rank + 1], CPU, "fp32")
    assert ours.pop("loss") == pytest.approx(measured.pop("loss"), rel=1e-12)
    assert ours == measured
    module = distributed.parallelise(alone, CPU)
    shared = module(halves[rank])
    shared["loss"].backward()
    for name in losses:
        assert distributed.mean(shared[name].detach()) == pytest.approx(losses[name].item(), rel=1e-4)
    for name, parameter in alone.named_parameters():
        largest = expected[name].abs().max()
        torch.testing.assert_close(parameter.grad, expected[name], atol=2e-3 * float(largest) + 1e-6, rtol=1e-3)
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    in_two_processes(of_two_processes, tmp_path)


def test_two_shares_weighted_by_their_labelled_pixels_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    segment = task().eval()
    whole, halves = unequal_shares()
    expected = segment(whole)["loss"]
    counts = sum((half.masks >= 0).sum() for half in halves)
    monkeypatch.setattr(distributed, "total", lambda own: counts)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    shares = [segment(half)["loss"] for half in halves]
    torch.testing.assert_close(sum(shares) / 2, expected)


def test_the_auxiliary_head_is_uper_nets_and_can_be_left_out() -> None:
    assert task().auxiliary_head is None and list(task()(batch())) == ["loss"]
    assert task(head="upernet", aux_weight=0.0).auxiliary_head is None
    assert task(head="upernet").aux_weight == 0.4


@pytest.mark.parametrize("head", HEADS)
def test_gradient_checkpointing_and_ema_change_nothing(head: str) -> None:
    plain, recomputed = task(head=head), task(head=head)
    set_checkpointing(recomputed.model.model, True)
    for segment in (plain, recomputed):
        segment(batch())["loss"].backward()
    for (name, a), b in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), b in zip(plain.named_buffers(), recomputed.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    ema = make_ema(plain, 0.5)
    assert ema.module.state_dict().keys() == plain.state_dict().keys()
    ema.update(plain, 1)
    evaluate(ema.module, [whole_masks(range(1))], CPU, "fp32")


def test_predictions_have_the_originals_size_and_do_not_depend_on_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    segment, image = task(scales=[0.5, 1.0], flip=True, inference="slide", window=48, stride=32).eval(), batch().images
    found = segment.predict(image[:1], (70, 91))
    assert found.shape == (len(CLASSES), 70, 91) and not found.requires_grad
    torch.testing.assert_close(found.sum(dim=0), torch.ones(70, 91))
    monkeypatch.setattr("xcit.models.dense.windows.BAND_VALUES", 1000)
    torch.testing.assert_close(segment.predict(image[:1], (70, 91)), found)
    assert torch.equal(segment.predict_classes(image[:1], (70, 91)), segment.predict(image[:1], (70, 91)).argmax(0))


def test_an_image_at_its_own_size_gives_the_logits_of_training() -> None:
    segment, images = task().eval(), batch().images
    expected = F.interpolate(segment.logits(images[:1]), size=(64, 64), mode="bilinear")[0].softmax(dim=0)
    torch.testing.assert_close(segment.predict(images[:1], (64, 64)), expected)


def test_inference_follows_the_options() -> None:
    image, original = batch().images[:1], (64, 64)
    plain = task().eval().predict(image, original)
    for options in ({"inference": "slide", "window": 32, "stride": 24}, {"scales": [1.5]}, {"flip": True}):
        assert not torch.allclose(task(**options).eval().predict(image, original), plain, atol=1e-4), options


def test_evaluates_in_half_precision() -> None:
    measured = [evaluate(task(), [whole_masks(range(2))], CPU, precision) for precision in ("fp32", "bf16")]
    assert measured[1]["loss"] == pytest.approx(measured[0]["loss"], rel=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task(head="upernet")(batch())["loss"]
    assert loss.dtype == torch.float32


def test_the_whole_image_is_kept() -> None:
    expected = task(longest=1024).preprocessing(
        Preprocessing(size=(384, 384), crop_ratio=0.9, interpolation="bilinear")
    )
    assert (expected.resize, expected.size, expected.crop_ratio) == ("shortest", (512, 1024), 1.0)
    assert expected.at(256).size == (256, 512) and expected.interpolation == "bilinear"


def test_wrong_options_are_refused() -> None:
    with pytest.raises(InputError, match=r"task.aux_weight=0.4: must be null with task.head=semantic_fpn"):
        Segment.check_options({"head": "semantic_fpn", "aux_weight": 0.4}, {})
    slides = {"head": "upernet", "aux_weight": 0.4, "inference": "slide", "window": 64, "stride": 65}
    with pytest.raises(InputError, match=r"task.stride=65: must be at most task.window=64"):
        Segment.check_options(slides, {})
    Segment.check_options(slides | {"stride": 64}, {})
    Segment.check_options(slides | {"inference": "whole"}, {})


@pytest.mark.parametrize(
    ("head", "images", "size", "is_enough"),
    [
        ("upernet", 1, 64, False),
        ("upernet", 2, 32, True),
        ("semantic_fpn", 1, 32, False),
        ("semantic_fpn", 1, 33, True),
        ("semantic_fpn", 2, 32, True),
    ],
)
def test_passes_in_which_a_batchnorm_sees_one_value_are_refused(
    head: str, images: int, size: int, is_enough: bool
) -> None:
    segment, one = task(head=head), batch(images, size, size)
    if is_enough:
        Segment.check_pass({"head": head}, images, size)
        assert segment(one)["loss"].isfinite()
    else:
        with pytest.raises(InputError, match=rf"task.head={head}.* needs at least 2 images in each pass"):
            Segment.check_pass({"head": head}, images, size)
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            segment(one)


def test_names_are_those_that_the_engine_and_others_load() -> None:
    segment = task()
    assert Segment.num_outputs(Target("mask", CLASSES)) == 0
    assert segment.get_submodule(Segment.backbone) is segment.model.model
    assert copy.deepcopy(segment).state_dict().keys() == segment.state_dict().keys()
    assert {name.partition(".")[0] for name in segment.state_dict()} == {"model", "decode_head"}
