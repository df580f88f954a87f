"""curves.png shows the metrics of a run, whatever its task reports, and its drawing never ends a run."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from PIL import Image

from scripts.draw_curves import metrics_of
from xcit.engine.curves import EVERY, Curves, draw, epochs, shown
from xcit.engine.recorder import Recorder
from xcit.tasks.detect import Detect

from ..conftest import Result

Row = dict[str, Any]
TITLES = ["loss", "learning rate", "k-NN top-1 %", "teacher entropy"]


def rows_of(num_epochs: int, updates: int = 4) -> list[Row]:
    """Rows of a task that measures a training metric and a validation metric, and has no validation loss."""
    rows: list[Row] = []
    for epoch in range(1, num_epochs + 1):
        for step in range((epoch - 1) * updates + 2, epoch * updates + 1, 2):
            measured = {"loss": 9.0 / step, "teacher_entropy": 3.0, "lr": 1e-3, "images_per_second": 100.0}
            rows.append({"step": step, "epoch": epoch, "split": "train", **measured})
        for weights, score in (("raw", 50.0), ("ema", 60.0)):
            place = {"step": epoch * updates, "epoch": epoch, "split": "val", "weights": weights}
            rows.append({**place, "knn_top1": score + epoch, "images": 9})
    return rows


def write(folder: Path, rows: list[Row]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def test_every_metric_has_a_panel_with_a_line_for_each_kind_of_weights() -> None:
    rows = rows_of(2)
    rows[0]["teacher_entropy"] = None  # NaN, as metrics.jsonl has it
    panels = draw({"": rows}).axes
    assert [axes.get_title() for axes in panels] == TITLES
    assert lines(panels[0]) == {"training": ([0.5, 1.0, 1.5, 2.0], [4.5, 2.25, 1.5, 1.125])}
    assert lines(panels[2]) == {
        "validation, raw weights": ([1, 2], [51, 52]),
        "validation, EMA weights": ([1, 2], [61, 62]),
    }
    entropies = lines(panels[3])["training"][1]
    assert entropies[0] != entropies[0] and entropies[1:] == [3.0] * 3


def test_a_detector_has_a_panel_for_each_headline_metric_and_each_loss() -> None:
    losses = ("rpn_objectness", "rpn_boxes", "classes", "boxes", "masks")
    train = {"step": 1, "epoch": 1, "split": "train", "loss": 1.0, "lr": 1e-3, **dict.fromkeys(losses, 0.2)}
    kinds = ("_map", "_map50", "_map75", "_map_small", "_map_medium", "_map_large")
    metrics = {f"{of}{kind}": 1.0 for of in ("box", "mask") for kind in kinds}
    rows = [train, {"step": 1, "epoch": 1, "split": "val", "weights": "raw", **metrics}]
    panels = draw({"": shown(rows, Detect.in_curves)}).axes
    assert [axes.get_title() for axes in panels] == ["loss", "learning rate", "box mAP %", "mask mAP %", *losses]


def test_a_metric_is_not_hidden_by_the_name_of_another_one() -> None:
    row = {"step": 1, "epoch": 1, "split": "val", "loss": 2.0, "recall": 1.0, "recall_at_10": 1.0}
    panels = draw({"": shown([row], ())}).axes
    assert [axes.get_title() for axes in panels][2:4] == ["recall", "recall_at_10"]


def test_the_script_draws_what_the_task_of_the_run_draws(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", rows_of(1))
    assert metrics_of(folder) == ()
    (folder / "config.yaml").write_text("task:\n  name: detect\n")
    assert metrics_of(folder) == ("box_map", "mask_map")
    (folder / "config.yaml").write_text("task:\n  name: ours\n")
    assert metrics_of(folder) == ()


def test_each_loss_of_a_validation_has_a_panel() -> None:
    panels = draw({"": [{"step": 1, "epoch": 1, "split": "val", "loss": 2.0, "loss_boxes": 1.0}]}).axes
    assert [axes.get_title() for axes in panels][:3] == ["loss", "learning rate", "loss_boxes"]


def test_a_picture_with_too_many_metrics_says_so_in_its_legend() -> None:
    rows = rows_of(1)
    rows[0] |= {f"loss_{number}": 1.0 for number in range(20)}
    figure = draw({"": rows})
    assert figure.legends[0].get_title().get_text() == "15 of 24 metrics"
    assert not figure.get_suptitle()


def test_epochs_are_whole_numbers_and_shares_end_at_100_percent() -> None:
    rows = [
        {"step": step, "epoch": step, "split": "val", "weights": "raw", "top1": 20.0 * step, "r2": 0.1}
        for step in range(1, 6)
    ]
    panels = draw({"": rows}).axes
    assert [axes.get_title() for axes in panels[2:4]] == ["top-1 %", "R²"]
    assert all(float(tick).is_integer() for axes in panels[:4] for tick in axes.get_xticks())
    assert 100 <= panels[2].get_ylim()[1] <= 101


def test_several_runs_are_told_apart() -> None:
    panels = draw({"a": rows_of(1), "b": rows_of(3)}).axes
    assert list(lines(panels[0])) == ["a: training", "b: training"]
    first, second = panels[0].get_lines()
    assert first.get_color() != second.get_color()
    assert panels[2].get_lines()[0].get_color() == panels[2].get_lines()[1].get_color() == first.get_color()


def test_the_epoch_is_right_between_validations_after_a_change_and_in_an_incomplete_epoch() -> None:
    """The second epoch has twice as many updates, and the third is half done."""
    rows = [{"step": step, "epoch": epoch, "split": "val"} for step, epoch in ((10, 1), (30, 2))]
    rows.append({"step": 37, "epoch": 3, "split": "train"})
    assert list(epochs([5, 10, 20, 30], rows)) == [0.5, 1, 1.5, 2]
    assert 2 < epochs([37], rows)[0] < 3


@pytest.mark.parametrize(("num_epochs", "drawn"), [(0, False), (1, True)])
def test_a_failed_run_is_drawn_after_its_first_validation(num_epochs: int, drawn: bool, tmp_path: Path) -> None:
    rows = rows_of(num_epochs + 1)[: 4 * num_epochs + 1]  # the next epoch has begun
    recorder = Recorder(tmp_path / "metrics.jsonl", Curves(tmp_path), after_step=0, epochs_done=0)
    with pytest.raises(KeyboardInterrupt), recorder:
        for row in rows:
            recorder.log(row)
        raise KeyboardInterrupt
    assert (tmp_path / "curves.png").exists() == drawn
    if drawn:
        Image.open(tmp_path / "curves.png").verify()


def test_a_long_run_is_drawn_on_the_way_with_both_kinds_of_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    curves, picture = Curves(write(tmp_path, rows_of(1))), tmp_path / "curves.png"
    train, _, raw, ema = rows_of(1)
    for now, row, drawn in [
        (EVERY - 1, raw, False),
        (EVERY - 1, train, False),  # too early
        (EVERY + 1, raw, False),
        (EVERY + 1, ema, False),
        (EVERY + 1, train, True),
        (EVERY + 2, raw, False),
        (EVERY + 2, train, False),  # too early again
        (2 * EVERY + 2, train, True),
        (9 * EVERY, train, False),  # nothing new was measured
    ]:
        picture.unlink(missing_ok=True)
        curves.log(row)
        assert picture.exists() == drawn, (now, row)


def test_a_picture_that_cannot_be_written_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (write(tmp_path, rows_of(1)) / "curves.png").mkdir()
    Curves(tmp_path).close()
    assert capsys.readouterr().err == f"note: {tmp_path}/curves.png: cannot be written (Is a directory)\n"
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "curves.png"}


def test_a_picture_that_cannot_be_drawn_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(1)
    rows[0]["loss"] = "high"
    Curves(write(tmp_path, rows)).close()
    note = capsys.readouterr().err
    assert note.startswith(f"note: {tmp_path}/curves.png: cannot be drawn (") and note.count("\n") == 1


def test_the_script_draws_unfinished_runs(command: Callable[..., Result], tmp_path: Path) -> None:
    write(tmp_path / "one", rows_of(1))
    rows = write(tmp_path / "two", rows_of(2)) / "metrics.jsonl"
    rows.write_text(rows.read_text() + '{"step": 9, "ep')
    result = command("scripts/draw_curves.py", "one", "two", "--output", "both.png")
    assert (result.status, result.stdout) == (0, "both.png: 2 runs\n"), result.stderr
    assert Image.open(tmp_path / "both.png").format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("none",), "none/metrics.jsonl: cannot be read (No such file or directory)"),
        (("new",), "new: has no validation yet"),
        (("broken",), "broken/metrics.jsonl: line 1 is damaged"),
        (("new", "--output", "a.jpg"), "--output=a.jpg: must end in .png"),
        (("new", "--output", "away/a.png"), "--output=away/a.png: its folder does not exist"),
    ],
)
def test_bad_input_is_one_line(
    command: Callable[..., Result], tmp_path: Path, arguments: tuple[str, ...], line: str
) -> None:
    write(tmp_path / "new", rows_of(1)[:2])
    write(tmp_path / "broken", [{"no": "step"}, *rows_of(1)])
    result = command("scripts/draw_curves.py", *arguments)
    assert (result.status, result.stdout, result.stderr) == (2, "", f"error: {line}\n")
