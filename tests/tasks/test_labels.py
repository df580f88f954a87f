"""Losses and metrics of classes, labels and numbers, beside timm's and scikit-learn's."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn import metrics
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor

from xcit.engine.task import Target, Task
from xcit.errors import InputError
from xcit.evaluation import classification
from xcit.evaluation.ranking import best_threshold
from xcit.tasks import TASKS

from ..conftest import in_two_processes
from .test_classify import Table

CPU = torch.device("cpu")
K, N = 4, 60
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(N, K, generator=GENERATOR).round(decimals=1)  # some are equal
LABELS = torch.randint(3, (N,), generator=GENERATOR)  # class 3 never occurs
HOT = (torch.rand(N, K, generator=GENERATOR) < 0.4).float()
HOLES = torch.rand(N, K, generator=GENERATOR) < 0.2
WEIGHTS = torch.rand(N, generator=GENERATOR) + 0.5
VALUES = LOGITS + torch.randn(N, K, generator=GENERATOR)
NAMES = ("a", "b", "c", "d")
EDGES = (0, 7, 8, 40, N)  # of batches of several sizes


def task_of(name: str, kind: str, target: dict[str, Any] | None = None, **options: Any) -> Task:
    return TASKS[name](Table(), Target(kind, NAMES, **(target or {})), **options)


def batch(targets: Tensor, labels: Tensor | None = None, rows: slice = slice(None), weights: Tensor = WEIGHTS) -> Any:
    labels = targets if labels is None else labels
    return SimpleNamespace(images=LOGITS[rows], targets=targets[rows], labels=labels[rows], weights=weights[rows])


def measured(task: Task, targets: Tensor, labels: Tensor | None = None) -> tuple[dict[str, float], Any]:
    evaluator = task.evaluator()
    for start, end in pairwise(EDGES):
        evaluator.update(batch(targets, labels, slice(start, end)))
    task.fit_to_validation(evaluator)
    return evaluator.compute(), evaluator.details()  # type: ignore[attr-defined]


def loss_of(task: Task, *arguments: Any, **options: Any) -> float:
    return task(batch(*arguments, **options))["loss"].item()


# Classes.

ONE_HOT = F.one_hot(LABELS, K).float()
SOFT = 0.7 * ONE_HOT + 0.3 * ONE_HOT.flip(0)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_weights_of_one_do_not_change_a_bit_of_the_loss(loss: str) -> None:
    plain = F.cross_entropy(LOGITS, SOFT)
    if loss == "binary_cross_entropy":
        plain = F.binary_cross_entropy_with_logits(LOGITS, (SOFT > 0).float())
    assert loss_of(task_of("classify", "class", loss=loss), SOFT, weights=torch.ones(N)) == plain.item()


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "binary_cross_entropy"])
def test_images_and_classes_weigh_as_they_are_told(loss: str) -> None:
    log_p = LOGITS.log_softmax(1)
    hot = (SOFT > 0).float()
    of_each = {
        "cross_entropy": -SOFT * log_p,
        "focal": -SOFT * (1 - log_p.exp()) ** 1.5 * log_p,
        "binary_cross_entropy": -(hot * F.logsigmoid(LOGITS) + (1 - hot) * F.logsigmoid(-LOGITS)) / K,
    }[loss]
    given = [1.0, 0.5, 2.0, 3.0]
    task = task_of("classify", "class", loss=loss, gamma=1.5, class_weights=given)
    expected = (of_each * torch.tensor(given) * WEIGHTS[:, None]).sum() / N
    assert loss_of(task, SOFT) == pytest.approx(expected.item(), rel=1e-5)
    without_exponent = loss_of(task_of("classify", "class", loss="focal", gamma=0.0), SOFT)
    assert without_exponent == pytest.approx(loss_of(task_of("classify", "class"), SOFT), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_sure_outputs_have_finite_gradients_with_any_exponent(gamma: float) -> None:
    logits = torch.tensor([[200.0, -200.0, 30.0, -30.0], [-17.0, 17.0, 5.0, 0.0]])
    hot = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    for name, kind, options in (
        ("classify", "class", {"loss": "focal", "gamma": gamma}),
        ("multilabel", "classes", {"loss": "asymmetric", "gamma_pos": gamma, "gamma_neg": gamma, "clip": 0.0}),
        ("multilabel", "classes", {"loss": "asymmetric", "gamma_pos": gamma, "gamma_neg": gamma}),
    ):
        given = logits.clone().requires_grad_()
        task_of(name, kind, **options)(SimpleNamespace(images=given, targets=hot, weights=torch.ones(2)))[
            "loss"
        ].backward()
        assert given.grad is not None and given.grad.isfinite().all(), name


def test_balanced_weights_make_each_class_count_equally_and_each_labels_positives_as_much_as_its_negatives() -> None:
    classes = task_of("classify", "class", {"counts": (10, 30, 60, 0)}, class_weights="balanced").weights
    torch.testing.assert_close(classes, torch.tensor([100 / 30, 100 / 90, 100 / 180, 0.0]))
    target = {"counts": (10, 5, 8, 0), "known": (20, 20, 10, 20)}
    labels = task_of("multilabel", "classes", target, class_weights="balanced").weights
    torch.testing.assert_close(labels, torch.tensor([1.0, 3.0, 0.25, 1.0]))


@pytest.mark.parametrize("name", ["classify", "multilabel"])
def test_weights_that_cannot_be_are_refused(name: str) -> None:
    kind = TASKS[name].target_kinds[0]
    with pytest.raises(InputError, match=r"task\.class_weights: holds 2 weights; the data have 4"):
        task_of(name, kind, class_weights=[1.0, 2.0])
    with pytest.raises(InputError, match=r"task\.class_weights=balanced: the data set does not say how many images"):
        task_of(name, kind, class_weights="balanced").begin_training(CPU)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_the_metrics_of_classes_are_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    found, details = measured(task_of("classify", "class"), ONE_HOT, LABELS)
    truth, predicted, p = LABELS.numpy(), LOGITS.topk(4).indices[:, 0].numpy(), LOGITS.softmax(1).numpy()
    assert found["balanced_accuracy"] == pytest.approx(100 * metrics.balanced_accuracy_score(truth, predicted))
    assert found["macro_f1"] == pytest.approx(100 * metrics.f1_score(truth, predicted, average="macro"))
    areas = [100 * metrics.roc_auc_score(truth == k, p[:, k]) for k in range(3)]
    assert found["auroc"] == pytest.approx(np.mean(areas))
    row = details.per_class[1]
    assert (row["class"], row["auroc"], row["images"]) == ("b", pytest.approx(areas[1]), (truth == 1).sum())
    assert row["precision"] == pytest.approx(100 * metrics.precision_score(truth == 1, predicted == 1))
    confusion = [[row[name] for name in NAMES] for row in details.tables["confusion"]]
    assert confusion == metrics.confusion_matrix(truth, predicted, labels=range(4)).tolist()

    monkeypatch.setattr(classification, "MOST_SCORES", 100)
    task = task_of("classify", "class")
    without, _ = measured(task, ONE_HOT, LABELS)
    assert without == {name: value for name, value in found.items() if name != "auroc"}
    assert "auroc" not in task.metrics(task.target, N)


# Labels.

UNKNOWN = HOT.masked_fill(HOLES, float("nan"))


@pytest.mark.parametrize("options", [{}, {"gamma_neg": 3.0, "gamma_pos": 0.0, "clip": 0.1}])
def test_the_asymmetric_loss_is_timms(options: dict[str, float]) -> None:
    timms = AsymmetricLossMultiLabel(**{"gamma_neg": 4, "gamma_pos": 1, "clip": 0.05, **options}, reduction="none")
    expected = (timms(LOGITS, HOT) * WEIGHTS[:, None])[~HOLES].mean()
    assert loss_of(task_of("multilabel", "classes", loss="asymmetric", **options), UNKNOWN) == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_unknown_labels_have_no_loss_and_no_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    given = SimpleNamespace(images=logits, targets=UNKNOWN, weights=WEIGHTS)
    loss = task_of("multilabel", "classes", class_weights=[2.0] * K)(given)["loss"]
    loss.backward()
    of_each = F.binary_cross_entropy_with_logits(LOGITS, HOT, reduction="none", pos_weight=torch.tensor(2.0))
    assert loss.item() == pytest.approx((of_each * WEIGHTS[:, None])[~HOLES].mean().item(), rel=1e-6)
    assert torch.equal(logits.grad == 0, HOLES)


def test_the_metrics_of_labels_are_scikit_learns_at_the_thresholds_of_the_best_f1() -> None:
    truth = UNKNOWN.clone()
    truth[:, 3] = torch.where(HOLES[:, 3], truth[:, 3], 0.0)  # a label without a positive
    task = task_of("multilabel", "classes")
    found, details = measured(task, truth)
    scores = LOGITS.double().sigmoid().numpy()
    columns = [(scores[~HOLES[:, k], k], HOT[~HOLES[:, k], k].numpy() > 0) for k in range(3)]
    assert found["map"] == pytest.approx(np.mean([100 * metrics.average_precision_score(y, s) for s, y in columns]))
    assert found["auroc"] == pytest.approx(np.mean([100 * metrics.roc_auc_score(y, s) for s, y in columns]))
    best = [max(metrics.f1_score(y, s >= edge) for edge in s) for s, y in columns]
    assert found["macro_f1"] == pytest.approx(100 * np.mean(best))
    assert [row["f1"] for row in details.per_class[:3]] == pytest.approx([100 * f1 for f1 in best])
    known = ~truth.isnan()
    assert found["loss"] == pytest.approx(F.binary_cross_entropy_with_logits(LOGITS[known], truth[known]).item())
    assert (details.per_class[3]["threshold"], details.per_class[3]["positives"], found["images"]) == (0.5, 0, N)
    assert torch.equal(task.state_dict()["thresholds"], torch.tensor([row["threshold"] for row in details.per_class]))


@pytest.mark.parametrize(
    ("scores", "truth", "expected"),
    [
        ([0.2, 0.9, 0.6], [0, 1, 1], 0.4),  # halfway between 0.6 and 0.2
        ([0.8, 0.6, 0.4, 0.2], [1, 0, 1, 0], 0.3),
        ([0.8, 0.6, 0.4], [1, 0, 0], 0.7),
        ([0.9, 0.5, 0.4, 0.3, 0.2], [1, 0, 0, 1, 0], 0.7),  # F1 is 2 / 3 above 0.7 and above 0.25: the highest
        ([0.6, 0.5], [1, 1], 0.25),  # no score is below
        ([0.6, 0.5], [0, 0], 0.5),
    ],
)
def test_a_threshold_is_halfway_to_the_next_lower_score(scores: list[float], truth: list[int], expected: float) -> None:
    assert best_threshold(np.array(scores), np.array(truth) > 0) == pytest.approx(expected)


def test_a_label_of_which_the_model_is_very_sure_is_still_found() -> None:
    task = task_of("multilabel", "classes")
    evaluator = task.evaluator()
    logits = torch.tensor([21.0, 20.0, 19.0, -3.0])[:, None].expand(4, K)
    evaluator.update(SimpleNamespace(images=logits, targets=torch.tensor([1.0, 1.0, 0.0, 0.0])[:, None].expand(4, K)))
    task.fit_to_validation(evaluator)
    assert (logits.sigmoid() > task.state_dict()["thresholds"])[:, 0].tolist() == [True, True, True, False]


# Numbers.

MISSING = (100 * VALUES + 2000).masked_fill(HOLES, float("nan"))
MEAN, STD = (2000.0, 1990.0, 2010.0, 1999.0), (100.0, 50.0, 200.0, 150.0)


@pytest.mark.parametrize("loss", ["mse", "l1", "smooth_l1"])
def test_the_loss_of_numbers_is_that_of_the_known_standardised_ones(loss: str) -> None:
    task = task_of("regress", "values", {"mean": MEAN, "std": STD}, loss=loss)
    standardised = (100 * VALUES + 2000 - torch.tensor(MEAN)) / torch.tensor(STD)
    function = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}[loss]
    expected = (function(LOGITS, standardised, reduction="none") * WEIGHTS[:, None])[~HOLES].mean()
    assert loss_of(task, MISSING) == pytest.approx(expected.item(), rel=1e-5)


def test_the_metrics_of_numbers_are_scikit_learns_in_their_own_units() -> None:
    task = task_of("regress", "values", {"mean": MEAN, "std": STD})
    found, details = measured(task, MISSING)
    predicted = task.predict(LOGITS)
    pairs = [(MISSING[~HOLES[:, k], k].numpy(), predicted[~HOLES[:, k], k].numpy()) for k in range(K)]
    oracles = {
        "r2": metrics.r2_score,
        "mae": metrics.mean_absolute_error,
        "rmse": metrics.root_mean_squared_error,
    }
    for name, oracle in oracles.items():
        expected = [oracle(*pair) for pair in pairs]
        assert [row[name] for row in details.per_class] == pytest.approx(expected, rel=1e-4)
        assert found[name] == pytest.approx(np.mean(expected), rel=1e-4)
    same = MISSING.clone()
    same[:, 0] = 7.1
    constant, details = measured(task, same)
    assert np.isnan(details.per_class[0]["r2"]) and constant["r2"] == pytest.approx(
        np.mean([metrics.r2_score(*pair) for pair in pairs[1:]]), rel=1e-4
    )


# Several processes.


def all_of(rows: slice) -> list[Any]:
    """The loss, the metrics and the details of each task on these rows of the data."""
    found: list[Any] = []
    for name, targets, labels in (
        ("classify", ONE_HOT, LABELS),
        ("multilabel", UNKNOWN, None),
        ("regress", MISSING, None),
    ):
        task = task_of(name, TASKS[name].target_kinds[0], {"mean": MEAN, "std": STD})
        evaluator = task.evaluator()
        evaluator.update(batch(targets, labels, rows))
        task.fit_to_validation(evaluator)
        found.append((loss_of(task, targets, labels, rows), evaluator.compute(), evaluator.details()))  # type: ignore[attr-defined]
    return found


def share(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(all_of(slice(rank, 59, 2)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_unequal_shares_measure_what_one_does(tmp_path: Path) -> None:
    in_two_processes(share, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    for one, two, other, is_mean in zip(all_of(slice(0, 59)), first, second, (False, True, True), strict=True):
        assert two[1] == other[1] == pytest.approx(one[1])
        for row, its_row in zip(two[2].per_class, one[2].per_class, strict=True):
            assert row == pytest.approx(its_row, nan_ok=True)
        assert two[2].tables == one[2].tables
        if is_mean:  # over the known entries of both; DDP averages the gradients, and so the losses
            assert (two[0] + other[0]) / 2 == pytest.approx(one[0], rel=1e-5)
