"""DINO: the teacher follows the student, each switch equals its formula, and the schedules are those of the paper."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import xcit
from data.views.multi_crop import Crops
from xcit.engine.optimizer import make_optimizer
from xcit.engine.task import Position
from xcit.models.stochastic_depth import StochasticDepth
from xcit.tasks import dino as dino_module
from xcit.tasks.dino import Dino
from xcit.tasks.dino_loss import centered, coding_rate_loss, cross_view_entropy, koleo, sinkhorn
from xcit.tasks.patch_masks import hide_blocks, hide_patches

from .small_dino import RUN, backbone, batch, task

# The loss.


@pytest.mark.parametrize("local_crops", [0, 3])
def test_the_batch_of_crops_equals_crops_one_by_one(local_crops: int) -> None:
    dino = task().eval()  # BatchNorm uses its running statistics, so that each crop can be computed by itself
    dino.center.copy_(torch.linspace(-1, 1, 12))
    crops = batch(4, local_crops)
    everything = [*crops.global_crops.split(4), *(crops.local_crops.split(4) if local_crops else [])]
    losses = []
    for t in range(2):
        scores = dino.teacher.head(dino.teacher.backbone(everything[t]))
        wanted = ((scores - dino.center) / 0.04).softmax(dim=-1)
        for v, images in enumerate(everything):
            if v != t:
                predicted = (dino.head(dino.model(images)) / 0.1).log_softmax(dim=-1)
                losses.append(-(wanted * predicted).sum(dim=-1).mean())
    torch.testing.assert_close(dino(crops)["loss"], torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_whole_student_and_never_the_teacher() -> None:
    dino = task()
    dino(batch())["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in dino.model.parameters() if p.ndim > 1)
    assert all(p.grad is None for p in dino.teacher.parameters())


# The switches. Each loss is written out here with the networks of the task.


def parts(dino: Dino, crops: Crops) -> tuple[Tensor, Tensor, Tensor]:
    """The teacher's outputs, (2, B, K), the student's, (V, B, K), and the student's features of global crops."""
    features = dino.model(crops.global_crops)
    scores = dino.head(torch.cat([features, dino.model(crops.local_crops)]))
    images = len(crops.global_crops) // 2
    return teacher_outputs(dino, crops), scores.unflatten(0, (-1, images)), features.unflatten(0, (2, images))


def teacher_outputs(dino: Dino, crops: Crops) -> Tensor:
    """The teacher's outputs for the global crops, (2, B, K)."""
    return dino.teacher.head(dino.teacher.backbone(crops.global_crops)).unflatten(0, (2, -1))


def test_simdino_compares_features() -> None:
    dino, crops = task(loss="simdino", coding_rate=0.7, coding_rate_eps=0.3).eval(), batch()
    outputs, scores, _ = parts(dino, crops)
    torch.testing.assert_close(scores.norm(dim=-1), torch.ones(5, 4))
    torch.testing.assert_close(dino(crops)["loss"], coding_rate_loss(outputs, scores, 0.3, 0.7))


def test_sinkhorn_takes_the_place_of_the_center() -> None:
    dino, crops = task(centering="sinkhorn"), batch()
    outputs, scores, _ = parts(copy.deepcopy(dino), crops)
    expected = cross_view_entropy(sinkhorn(outputs, 0.04), scores, 0.1)
    torch.testing.assert_close(dino(crops)["loss"], expected, rtol=1e-4, atol=1e-5)
    dino.after_update(RUN)
    assert not dino.center.any()


def test_koleo_is_added_with_its_weight() -> None:
    plain, dino, crops = task(), task(koleo=0.3), batch()
    _, _, features = parts(copy.deepcopy(dino), crops)
    losses = dino(crops)
    torch.testing.assert_close(losses["koleo"], koleo(features), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["loss"], plain(crops)["loss"] + 0.3 * losses["koleo"])


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_patch_loss_compares_hidden_patches_with_a_center_of_their_own(batch_norm: bool) -> None:
    dino, crops = task(patch_loss=0.5, batch_norm=batch_norm).eval(), batch(4, 0)
    dino.center.copy_(torch.linspace(-1, 1, 12))
    dino.get_buffer("patch_center").copy_(torch.linspace(1, -1, 12))
    torch.manual_seed(3)
    hidden = hide_blocks(8, (4, 4), 0.3, torch.device("cpu"))
    torch.manual_seed(3)
    losses = dino(crops)
    masks = hidden.masks(8, (4, 4))
    tokens = dino.model.forward_features(hide_patches(crops.global_crops, masks, 8))
    seen = dino.head(tokens[:, 1:]) / 0.1
    wanted = dino.teacher.head(dino.teacher.backbone.forward_features(crops.global_crops)[:, 1:])
    wanted = ((wanted - dino.get_buffer("patch_center")) / 0.04).softmax(dim=-1)
    entropies = -(wanted * seen.log_softmax(dim=-1)).sum(dim=-1)
    flat = masks.flatten(1)
    of_image = (entropies * flat).sum(dim=1) / flat.sum(dim=1).clamp_min(1)
    torch.testing.assert_close(losses["patch_loss"], of_image.mean(), rtol=1e-4, atol=1e-5)
    crop_loss = losses["loss"] - 0.5 * losses["patch_loss"]
    wanted_crops = centered(teacher_outputs(dino, crops), dino.center, 0.04)
    scores = dino.head(tokens[:, 0]).unflatten(0, (2, 4))
    torch.testing.assert_close(crop_loss, cross_view_entropy(wanted_crops, scores, 0.1), rtol=1e-4, atol=1e-5)


def test_prototypes_can_learn_their_length() -> None:
    dino = task(norm_last_layer=False)
    dino(batch())["loss"].backward()
    assert dino.head.length is not None and dino.head.length.grad is not None and dino.head.length.grad.any()
    assert task().head.length.requires_grad is False


@pytest.mark.parametrize("options", [{}, {"loss": "simdino"}, {"koleo": 0.1}, {"patch_loss": 1.0}])
def test_losses_are_computed_in_fp32_under_autocast(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16, products of matrices in the coding rate were wrong by several percent."""
    inside: list[bool] = []
    for name in ("cross_view_entropy", "coding_rate_loss", "koleo", "masked_patch_entropy", "entropy"):
        loss = getattr(dino_module, name)
        watched = lambda *inputs, loss=loss: (inside.append(torch.is_autocast_enabled("cpu")), loss(*inputs))[1]  # noqa: E731
        monkeypatch.setattr(dino_module, name, watched)
    with torch.autocast("cpu", torch.bfloat16):
        losses = task(**options)(batch())
    assert losses["loss"].dtype == torch.float32
    assert inside and not any(inside)


def test_the_center_is_the_moving_average_of_the_teachers_outputs() -> None:
    dino, crops = task(center_momentum=0.75), batch()
    twin = copy.deepcopy(dino)
    outputs = twin.teacher.head(twin.teacher.backbone(crops.global_crops))
    dino(crops)
    dino.after_update(RUN)
    torch.testing.assert_close(dino.center, 0.25 * outputs.mean(dim=0))
    dino.eval()(crops)
    dino.after_update(RUN)
    torch.testing.assert_close(dino.center, 0.25 * outputs.mean(dim=0))


def test_two_passes_of_an_update_move_the_center_once() -> None:
    """With train.accumulate=2 the center follows the mean of both, as if they were one batch."""
    dino, crops = task(center_momentum=0.75), batch()
    twin = copy.deepcopy(dino)
    outputs = twin.teacher.head(twin.teacher.backbone(crops.global_crops))
    dino(crops)
    assert not dino.center.any(), "all passes of an update have the same center"
    dino(crops)
    dino.after_update(RUN)
    torch.testing.assert_close(dino.center, 0.25 * outputs.mean(dim=0), rtol=1e-4, atol=1e-6)


def test_without_centering_the_center_stays_at_zero() -> None:
    dino = task(centering="none")
    dino(batch())
    dino.after_update(RUN)
    assert not dino.center.any()


def test_drop_path_and_dropout_are_in_the_student_alone() -> None:
    dino = task(backbone(drop_path_rate=0.5, proj_drop_rate=0.5))
    rates = [part.rate for part in dino.model.modules() if isinstance(part, StochasticDepth)]
    assert rates and min(rates) == 0.5
    crops = batch().global_crops
    torch.testing.assert_close(dino.teacher.backbone(crops), dino.teacher.backbone(crops), rtol=0, atol=0)
    assert not torch.equal(dino.model(crops), dino.model(crops))


def test_a_vision_transformer_of_timm_is_a_backbone_too() -> None:
    vit = xcit.create_model("timm", name="vit_tiny_patch16_224", num_classes=0, image_size=32)
    losses = task(vit, patch_loss=1.0)(batch())
    assert losses["loss"].isfinite() and losses["patch_loss"] > 0


# The teacher.


def test_the_teacher_starts_as_the_student_and_follows_it() -> None:
    dino = task(momentum=0.9)
    for ours, theirs in zip(dino.model.parameters(), dino.teacher.backbone.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    before = copy.deepcopy(dino.teacher)
    with torch.no_grad():
        for parameter in [*dino.model.parameters(), *dino.head.parameters()]:
            parameter.add_(1.0)
    dino.after_update(Position(101, 400, 4))  # after 100 updates of 400
    momentum = 1 - (1 - 0.9) * (math.cos(math.pi * 100 / 400) + 1) / 2
    for old, new in zip(before.parameters(), dino.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + (1 - momentum))


def test_the_teachers_temperature_rises_by_equal_steps_per_epoch() -> None:
    dino = task(teacher_warmup_epochs=4)
    seen = [dino.teacher_temperature.item()]
    for update in range(1, 6 * 4 + 1):
        dino.after_update(Position(update, 400, 4))
        if update % 4 == 0:
            seen.append(dino.teacher_temperature.item())
    assert seen == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07, 0.07])


def test_the_prototypes_do_not_learn_in_the_first_epoch() -> None:
    dino = task(freeze_last_layer=1.0)
    optimizer = make_optimizer(dino, name="adamw", lr=1e-2, weight_decay=0.1, options={})
    assert dino.head.prototypes is not None
    for update, frozen in ((3, True), (4, False)):
        before = dino.head.prototypes.detach().clone()
        dino(batch())["loss"].backward()
        dino.before_step(Position(update, 400, 4), optimizer)
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(before, dino.head.prototypes) == frozen


def test_the_state_holds_all_that_a_resume_needs() -> None:
    dino, crops = task(koleo=0.1, patch_loss=1.0), batch()
    dino(crops)
    dino.after_update(Position(1, 400, 4))
    other = task(copy.deepcopy(backbone()), koleo=0.1, patch_loss=1.0)
    other.load_state_dict(dino.state_dict())
    losses = []
    for each in (dino, other):
        torch.manual_seed(5)
        losses.append(each(crops))
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
    for name in (
        "center",
        "patch_center",
        "teacher_temperature",
        "teacher.head.prototypes",
        "teacher.backbone.norm.weight",
    ):
        assert name in dino.state_dict()


def test_others_load_the_teacher() -> None:
    dino = task()
    assert dino.get_submodule(dino.backbone) is dino.teacher.backbone
    assert {name: dino.get_submodule(part) for name, part in dino.networks.items()} == {
        "student": dino.model,
        "teacher": dino.teacher.backbone,
    }
