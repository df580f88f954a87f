"""Distillation losses match their formulas. The teacher has its own preprocessing and is no part of the student."""

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import xcit
from xcit.engine.freezing import freeze
from xcit.engine.numerics import grad_scaler
from xcit.engine.optimizer import make_optimizer
from xcit.engine.state import TrainingState
from xcit.preprocessing import Preprocessing
from xcit.tasks import TASKS, teacher
from xcit.tasks.distill import Distill

from ..engine.toy import target_of
from .tiny_models import TEACHER_MEAN, TEACHER_STD, Recorder, Student

CPU = torch.device("cpu")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Replaces every teacher by one Recorder. `asked` lists the arguments of the calls that create it."""
    torch.manual_seed(1)
    model = Recorder()
    model.asked = []

    def create_model(*names: str, **options: Any) -> nn.Module:
        model.asked.append((*names, options))
        return model

    monkeypatch.setattr(teacher, "create_model", create_model)
    return model


def begun(**options: Any) -> Distill:
    torch.manual_seed(0)
    task = TASKS["distill"](Student(), target_of(3), **options)
    task.begin_training(CPU)
    assert isinstance(task, Distill)
    return task.train()


def batch(size: int = 24) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]])
    return SimpleNamespace(
        images=torch.randn(2, 3, size, size, generator=generator), targets=mixed, weights=torch.ones(2)
    )


def answers(task: Distill, of: SimpleNamespace, fake: Recorder) -> tuple[Tensor, Tensor]:
    """Returns the student's and the teacher's logits, both in the modes that training uses."""
    with torch.no_grad():
        before = {key: value.clone() for key, value in task.model.state_dict().items()}
        student = task.model(of.images)
        task.model.load_state_dict(before)
        assert task.teacher is not None
        taught = task.teacher(of.images)
    fake.images.clear()
    return student, taught


def cross_entropy_by_hand(logits: Tensor, targets: Tensor) -> Tensor:
    return -(targets * (logits - logits.exp().sum(1, keepdim=True).log())).sum(1).mean()


def test_hard_distillation_is_the_cross_entropy_with_the_teachers_class(fake: Recorder) -> None:
    task, images = begun(kind="hard", alpha=1.0), batch()
    student, taught = answers(task, images, fake)
    chosen = torch.zeros(2, 3)
    for image, logits in enumerate(taught.tolist()):
        chosen[image, logits.index(max(logits))] = 1
    torch.testing.assert_close(task(images)["loss"], cross_entropy_by_hand(student, chosen))


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_soft_distillation_is_the_divergence_at_a_temperature(tau: float, fake: Recorder) -> None:
    task, images = begun(kind="soft", alpha=1.0, tau=tau), batch()
    student, taught = answers(task, images, fake)
    p, q = (torch.exp(x / tau) / torch.exp(x / tau).sum(1, keepdim=True) for x in (taught, student))
    torch.testing.assert_close(task(images)["loss"], tau**2 * (p * (p / q).log()).sum(1).mean())


def test_the_authors_soft_distillation_is_divided_by_the_classes_too(fake: Recorder) -> None:
    images = batch()
    student, taught = answers(begun(kind="soft"), images, fake)
    p, q = (torch.exp(x / 3) / torch.exp(x / 3).sum(1, keepdim=True) for x in (taught, student))
    theirs = 3**2 * (p * (p / q).log()).sum() / (2 * 3)
    task = begun(kind="soft", tau=3.0, divide_by="images_and_classes")
    torch.testing.assert_close(task.distance(student, taught), theirs)


def test_soft_distillation_is_zero_if_student_and_teacher_agree(fake: Recorder) -> None:
    task = begun(kind="soft", tau=2.0)
    logits = torch.randn(4, 3)
    assert task.distance(logits, logits + 5).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_alpha_mixes_labels_and_teacher(alpha: float, loss: str, kind: str, fake: Recorder) -> None:
    images = batch()
    task = begun(alpha=alpha, loss=loss, kind=kind)
    student, taught = answers(task, images, fake)
    labels = TASKS["classify"](task.model, target_of(3), loss=loss).classification_loss(student, images)
    torch.testing.assert_close(task(images)["loss"], (1 - alpha) * labels + alpha * task.distance(student, taught))


def test_hard_distillation_with_alpha_one_half_is_the_default() -> None:
    task = TASKS["distill"](Student(), target_of(3))
    assert (task.kind, task.alpha, task.tau, task.teacher_name) == ("hard", 0.5, 1.0, "regnety_160.deit_in1k")


def test_binary_cross_entropy_counts_every_class_of_a_mixed_image_as_correct() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.4, 0.3]])
    task = TASKS["classify"](nn.Identity(), target_of(3), loss="binary_cross_entropy")
    p = 1 / (1 + (-logits).exp())
    right = torch.tensor([[True, True, False], [False, False, True]])
    expected = -torch.where(right, p.log(), (1 - p).log()).mean()
    torch.testing.assert_close(task.classification_loss(logits, batch()), expected)


@pytest.mark.parametrize("size", [24, 16, 40])
def test_the_teacher_gets_images_in_its_own_preprocessing(size: int, fake: Recorder) -> None:
    task, images = begun(), batch(size)
    task(images)
    (seen,) = fake.images
    student = Preprocessing()
    mean, std, teacher_mean, teacher_std = (
        torch.tensor(values)[:, None, None] for values in (student.mean, student.std, TEACHER_MEAN, TEACHER_STD)
    )
    expected = (images.images * std + mean - teacher_mean) / teacher_std
    if size != 24:
        expected = F.interpolate(expected, (24, 24), mode="bicubic", antialias=True)
    torch.testing.assert_close(seen, expected)
    assert not torch.allclose(seen.mean(), images.images.mean(), atol=1e-3)


@pytest.mark.parametrize("shape", [(16, 24), (24, 16)])
def test_images_that_are_not_square_are_resized_to_the_teachers_size(shape: tuple[int, int], fake: Recorder) -> None:
    task = begun()
    task.teacher(torch.zeros(1, 3, *shape))
    assert fake.images[0].shape == (1, 3, 24, 24)


def test_the_teachers_size_can_be_set(fake: Recorder) -> None:
    task = begun(teacher_image_size=20)
    assert fake.asked[-1][-1]["image_size"] == 20
    task(batch(24))
    assert fake.images[0].shape[-2:] == (20, 20)


def test_a_teacher_with_the_students_preprocessing_gets_the_same_images(fake: Recorder) -> None:
    plain = Preprocessing()
    fake.pretrained_cfg |= {"mean": plain.mean, "std": plain.std}
    task, images = begun(), batch()
    task(images)
    assert fake.images[0] is images.images


def test_the_teacher_is_not_part_of_the_student(fake: Recorder) -> None:
    """It is not in the student's parameters, state dict, modules, moving average, optimizer or checkpoints."""
    task, plain = begun(), TASKS["classify"](Student(), target_of(3))
    assert task.teacher is not None and task.teacher.model is fake
    assert task.state_dict().keys() == plain.state_dict().keys()
    assert [name for name, _ in task.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert fake not in list(task.modules())
    optimizer = make_optimizer(task, name="adamw", lr=1e-3, weight_decay=0.1, options={})
    learning = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not learning & {id(p) for p in fake.parameters()}
    saved = TrainingState(task, optimizer, grad_scaler(CPU, "fp32"), ModelEmaV3(task, decay=0.9)).state_dict()
    assert saved["task"].keys() == saved["ema"].keys() == plain.state_dict().keys()


def test_the_moving_average_does_not_copy_the_teacher(fake: Recorder) -> None:
    """train.py creates the moving average before the teacher, so memory holds the teacher once."""
    task = TASKS["distill"](Student(), target_of(3))
    average = ModelEmaV3(task, decay=0.9)
    task.begin_training(CPU)
    average.update(task)
    assert average.module.teacher is None
    assert task.teacher is not None


def test_the_teacher_is_not_trained(fake: Recorder) -> None:
    before = copy.deepcopy(fake.state_dict())
    task = begun()
    assert not any(part.training for part in fake.modules()), "dropout is off, statistics stay"
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    for _ in range(3):
        task.train()
        task(batch())["loss"].backward()
        optimizer.step()
    assert not any(p.requires_grad or p.grad is not None for p in fake.parameters())
    for key, value in fake.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(p.grad is not None for p in task.parameters())


def test_a_partly_frozen_student_trains_with_a_teacher(fake: Recorder) -> None:
    task = begun()
    freeze(task.model, ["norm"])
    task(batch())["loss"].backward()
    assert [name for name, p in task.named_parameters() if p.grad is not None] == [
        "model.head.weight",
        "model.head.bias",
    ]


def test_a_batch_before_begin_training_is_an_error() -> None:
    with pytest.raises(xcit.InputError, match="begin_training must come before the first batch"):
        TASKS["distill"](Student(), target_of(3))(batch())


def test_evaluation_never_needs_the_teacher(fake: Recorder) -> None:
    task = TASKS["distill"](Student(), target_of(3))
    evaluator = task.eval().evaluator()
    labels = torch.tensor([0, 2])
    evaluator.update(SimpleNamespace(images=batch().images, labels=labels, targets=F.one_hot(labels, 3).float()))
    assert evaluator.compute()["images"] == 2
    assert fake.asked == [] and fake.images == []


def test_published_weights_are_requested_by_timms_name(fake: Recorder) -> None:
    begun(teacher="regnety_160.deit_in1k")
    assert fake.asked[-1] == (
        "timm",
        {"name": "regnety_160.deit_in1k", "num_classes": 3, "image_size": None, "pretrained": True},
    )


def test_a_teacher_with_another_number_of_classes_is_refused(fake: Recorder) -> None:
    fake.pretrained_cfg["num_classes"] = 1000
    with pytest.raises(xcit.InputError, match=r"task\.teacher=some: has 1000 classes, the data have 3"):
        begun(teacher="some")


def test_the_teacher_knows_the_normalization_that_the_run_gives_to_its_images(fake: Recorder) -> None:
    """data.mean and data.std may differ from the student's defaults."""
    task = TASKS["distill"](Student(), target_of(3))
    given = replace(Preprocessing(), mean=(0.2, 0.3, 0.4), std=(0.1, 0.2, 0.3))
    assert task.preprocessing(given) == given
    task.begin_training(CPU)
    assert isinstance(task, Distill) and task.teacher
    pixels = torch.rand(2, 3, 24, 24)
    seen = [
        (pixels - torch.tensor(m).view(3, 1, 1)) / torch.tensor(s).view(3, 1, 1)
        for m, s in ((given.mean, given.std), (TEACHER_MEAN, TEACHER_STD))
    ]
    torch.testing.assert_close(task.teacher.convert(seen[0]), seen[1])


def test_a_teacher_of_rgb_refuses_other_channels() -> None:
    with pytest.raises(xcit.InputError, match=r"^data\.channels=4: must be 3 with task=distill"):
        TASKS["distill"](Student(), target_of(3)).preprocessing(
            Preprocessing(channels=4, mean=(0.5,) * 4, std=(0.5,) * 4)
        )
