"""The engine refuses a validation that is not finite, a length that is not unique, and a task without a loss."""

from pathlib import Path

import pytest
from torch import Tensor

from xcit.engine.length import Length
from xcit.errors import InputError, TrainingError

from .toy import ToyLoader, ToyTask, run


@pytest.mark.parametrize(("key", "stops"), [("score", True), ("loss", True), ("iou_of_absent_class", False)])
def test_only_the_loss_and_the_headline_must_be_finite(
    key: str, stops: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: object) -> dict[str, float]:
        return {"score": 1.0, "loss": 0.5} | {key: float("nan")}

    if stops:
        with pytest.raises(TrainingError, match="validation after epoch 1 measured"):
            run(tmp_path, ToyLoader(1), measure=measure)
        return
    _, rows = run(tmp_path, ToyLoader(1), measure=measure)
    assert rows[-1][key] is None, "JSON has no NaN"


@pytest.mark.parametrize("given", [{}, {"epochs": 2, "updates": 3}])
def test_a_run_has_exactly_one_length(given: dict[str, int]) -> None:
    with pytest.raises(InputError, match="exactly one must be given"):
        Length(**given)


class Unnamed(ToyTask):
    def forward(self, batch: object) -> dict[str, Tensor]:
        losses = super().forward(batch)  # type: ignore[arg-type]
        return {"other": losses["loss"]}


def test_a_task_must_return_the_loss_that_is_minimized(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="loss"):
        run(tmp_path, ToyLoader(1), task=Unnamed())
