"""An update of the loop equals the same update computed by hand on a tiny model."""

from pathlib import Path

import pytest
import torch

from xcit.engine.run_folder import RunFolder
from xcit.engine.state import TrainingState
from xcit.errors import TrainingError

from .toy import ToyLoader, ToyTask, run


def weights(state: TrainingState) -> torch.Tensor:
    return state.task.state_dict()["model.weight"]


def by_hand(lr: float = 0.1, clip: float | None = None) -> torch.Tensor:
    """Returns the weights after one step of gradient descent on all 24 samples."""
    task, loader = ToyTask(), ToyLoader(1)
    task(next(loader.epoch(0)))["loss"].backward()
    gradients = [task.model.weight.grad, task.model.bias.grad]
    assert gradients[0] is not None and gradients[1] is not None
    norm = torch.cat([g.flatten() for g in gradients if g is not None]).norm()
    scale = min(1.0, clip / norm.item()) if clip else 1.0
    return task.model.weight.detach() - lr * scale * gradients[0]


def test_an_update_is_one_step_down_the_gradient(tmp_path: Path) -> None:
    state, _ = run(tmp_path, ToyLoader(1))
    torch.testing.assert_close(weights(state), by_hand())
    assert (state.step, state.epoch) == (1, 1)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_passes_equal_one_large_batch(tmp_path: Path, accumulate: int) -> None:
    state, rows = run(tmp_path, ToyLoader(accumulate), accumulate=accumulate)
    torch.testing.assert_close(weights(state), by_hand())
    whole = ToyTask()
    assert rows[0]["loss"] == pytest.approx(whole(next(ToyLoader(1).epoch(0)))["loss"].item())


def test_the_gradient_is_clipped_by_its_global_norm(tmp_path: Path) -> None:
    state, _ = run(tmp_path, ToyLoader(1), clip_norm=0.5)
    torch.testing.assert_close(weights(state), by_hand(clip=0.5), rtol=1e-4, atol=1e-6)


def test_the_ema_follows_the_weights(tmp_path: Path) -> None:
    """Its decay is 0 after the first update and 1/4 after the second, while it warms up."""
    first, second = (weights(run(tmp_path / str(epochs), ToyLoader(1), epochs=epochs)[0]) for epochs in (1, 2))
    state, _ = run(tmp_path, ToyLoader(1), epochs=2, ema_decay=0.9)
    assert state.ema is not None
    torch.testing.assert_close(state.ema.module.state_dict()["model.weight"], 0.25 * first + 0.75 * second)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_trains_fp32_weights(tmp_path: Path, precision: str) -> None:
    """fp16 may skip its first updates, until the gradient scale is small enough."""
    state, rows = run(tmp_path, ToyLoader(1), epochs=30, precision=precision)
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert losses[-1] < 0.05 * losses[0]
    assert weights(state).dtype == torch.float32
    torch.testing.assert_close(weights(state), torch.ones(1, 4), atol=0.2, rtol=0)


def test_a_loss_that_is_not_finite_stops_the_run_before_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the loss is nan by step 2 of epoch 1"):
        run(tmp_path, ToyLoader(3, spoilt=1))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_validation_that_is_not_finite_stops_the_run_before_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="validation after epoch 2 measured"):
        run(tmp_path, ToyLoader(1), epochs=3, scores=[50.0, float("nan"), 60.0])
    assert torch.load(RunFolder(tmp_path / "run").last, weights_only=True)["epoch"] == 1


def test_best_is_the_epoch_with_the_highest_score_of_raw_or_ema_weights(tmp_path: Path) -> None:
    scores = [2.0, 1.0, 10.0, 99.0, 90.0, 2.0]  # raw, ema, raw, ema …
    state, rows = run(tmp_path, ToyLoader(1), epochs=3, ema_decay=0.5, scores=scores)
    folder = RunFolder(tmp_path / "run")
    saved = {path.name: torch.load(path, weights_only=True) for path in (folder.best, folder.last)}
    assert saved["best.pt"]["epoch"] == 2
    assert saved["last.pt"]["epoch"] == 3
    assert (state.best, state.best_weights) == (99.0, "ema")
    for content in saved.values():
        assert (content["best"], content["best_weights"], content["headline"]) == (99.0, "ema", "score")
    assert saved["best.pt"]["validated"] == {"raw": 10.0, "ema": 99.0}
    assert saved["last.pt"]["validated"] == {"raw": 90.0, "ema": 2.0}
    validated = [(row["epoch"], row["weights"], row["score"]) for row in rows if row["split"] == "val"]
    assert validated == [
        (1, "raw", 2.0),
        (1, "ema", 1.0),
        (2, "raw", 10.0),
        (2, "ema", 99.0),
        (3, "raw", 90.0),
        (3, "ema", 2.0),
    ]


def test_best_follows_the_raw_weights_while_the_ema_is_worse(tmp_path: Path) -> None:
    state, _ = run(tmp_path, ToyLoader(1), epochs=2, ema_decay=0.5, scores=[50.0, 25.0, 95.0, 25.0])
    assert (state.best, state.best_weights) == (95.0, "raw")
    assert torch.load(RunFolder(tmp_path / "run").best, weights_only=True)["epoch"] == 2


def test_the_best_epoch_may_be_chosen_by_the_raw_weights_alone(tmp_path: Path) -> None:
    scores = [50.0, 25.0, 40.0, 99.0]  # raw, ema, raw, ema
    state, _ = run(tmp_path, ToyLoader(1), epochs=2, ema_decay=0.5, scores=scores, best_by="raw")
    assert (state.best, state.best_weights) == (50.0, "raw")
    assert torch.load(RunFolder(tmp_path / "run").best, weights_only=True)["epoch"] == 1


@pytest.mark.parametrize(
    ("last", "told"),
    [([95.8, 25.0], True), ([95.8, 94.0], False), ([94.0, 95.0], False), ([-1.0, -1.2], True), ([0.0, 0.0], False)],
)
def test_an_ema_that_lags_behind_is_told_of_at_the_end(
    last: list[float], told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, ToyLoader(1), epochs=2, ema_decay=0.5, scores=[50.0, 1.0, *last])
    note = (
        f"note: the moving average lags behind the raw weights: score {last[1]:.2f} instead of {last[0]:.2f} in the "
        "last validation; a lower train.ema_decay lets it follow faster\n"
    )
    assert capsys.readouterr().err.count(note) == told


def test_a_run_without_an_ema_takes_its_raw_weights(tmp_path: Path) -> None:
    state, _ = run(tmp_path, ToyLoader(1), epochs=2, scores=[2.0, 1.0])
    assert (state.best, state.best_weights, state.validated) == (2.0, "raw", {"raw": 1.0})


def test_random_numbers_in_the_model_depend_only_on_seed_and_step(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first, _ = run(tmp_path / "a", ToyLoader(3), epochs=2, noise=0.5)
    torch.manual_seed(2)
    second, _ = run(tmp_path / "b", ToyLoader(3), epochs=2, noise=0.5)
    assert torch.equal(weights(first), weights(second))
