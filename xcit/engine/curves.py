"""curves.png: metrics.jsonl as a picture, with a panel for each metric."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, WriteError, print_note
from ..metric_names import METRIC_NAMES
from ..storage import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
FIRST = ("loss", "lr")
"""The first panels. The metrics of the validation come next, in their order, and then the others of the training."""
NO_CURVE = ("step", "epoch", "split", "weights", "images", "images_per_second")
LABELS = METRIC_NAMES | {"lr": "learning rate"}
STYLES: dict[str, dict[str, Any]] = {
    "training": {"linewidth": 1, "alpha": 0.7},
    "validation, raw weights": {"linewidth": 1.6},
    "validation, EMA weights": {"linewidth": 1.6, "linestyle": (0, (4, 1.5))},
}
MOST_PANELS = 15
DECADES = 2
"""The loss has a logarithmic axis if its values span more than this."""
EVERY = 100
"""Seconds from one drawing to the next during a run. A drawing takes about one, so it costs at most 1 % of the time."""


class Curves:
    """Draws curves.png when a run ends, also by an error or a signal, and during it at most every 100 seconds.

    A tracker of the `Recorder`. Nothing is drawn before the first validation. A failure is noted and never ends a run.
    """

    def __init__(self, folder: Path, metrics: Sequence[str] = ()) -> None:
        """metrics: see `shown`."""
        self.metrics = metrics
        self.source, self.target = folder / "metrics.jsonl", folder / "curves.png"
        self.validated, self.drawn_at = False, time.monotonic()

    def log(self, row: Row) -> None:
        # The first training row after a validation, because a validation of raw and EMA weights has two rows.
        if row["split"] == "val":
            self.validated = True
        elif self.validated and time.monotonic() - self.drawn_at > EVERY:
            self.close()
            self.validated, self.drawn_at = False, time.monotonic()

    def close(self) -> None:
        try:
            rows = read_rows(self.source)
            if any(row["split"] == "val" for row in rows):
                write_curves(self.target, {"": shown(rows, self.metrics)})
        except (InputError, WriteError) as error:
            print_note(str(error))
        except Exception as error:  # whatever matplotlib may raise
            print_note(f"{self.target}: cannot be drawn ({error})")


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl. The last one may be incomplete, because a run may be writing it.

    Raises:
        InputError: The file cannot be read, or another row is damaged.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from None
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["step"], row["epoch"], row["split"]
        except (ValueError, LookupError, TypeError):
            if number < len(lines):
                raise InputError(f"{path}: line {number} is damaged") from None
        else:
            rows.append(row)
    return rows


def shown(rows: Sequence[Row], metrics: Sequence[str]) -> Sequence[Row]:
    """The rows with those metrics of the validations that get a panel, besides loss: a task's `in_curves`."""
    if not metrics:
        return rows
    kept = {*NO_CURVE, *FIRST, *metrics}
    return [row if row["split"] == "train" else {name: row[name] for name in row if name in kept} for row in rows]


def write_curves(path: Path, runs: Mapping[str, Sequence[Row]]) -> None:
    """Draw the metrics of one or several runs, by name, to a PNG file.

    Raises:
        WriteError: The file cannot be written.
    """
    figure = draw(runs)
    write_atomically(path, lambda file: figure.savefig(file, format="png"))


def draw(runs: Mapping[str, Sequence[Row]]) -> "Figure":
    """A panel for each metric, over the epochs. One run has a color for each kind of line, several have one each."""
    from matplotlib.figure import Figure  # here, since its import takes half a second
    from matplotlib.ticker import MaxNLocator

    panels = names(row for rows in runs.values() for row in rows)
    drawn = panels[:MOST_PANELS]
    columns = 2 if len(drawn) == 4 else min(3, len(drawn))
    lines = -(-len(drawn) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.7 * lines + 0.5), dpi=100, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, name in zip(grid, drawn, strict=False):
        draw_metric(axes, name, runs)
    for axes in grid[len(drawn) :]:
        axes.axis("off")
    last = max(float(max(line.get_xdata())) for axes in grid for line in axes.get_lines())
    for axes in grid[: len(drawn)]:
        axes.set_xlim(0, 1.02 * last)
        if last >= 1:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axes in grid[max(0, len(drawn) - columns) : len(drawn)]:
        axes.set_xlabel("epoch")

    # One legend for all panels: no panel needs to have every kind of line.
    handles = {line.get_label(): line for axes in grid for line in axes.get_lines()}
    title = f"{len(drawn)} of {len(panels)} metrics" if len(panels) > len(drawn) else None
    place = {"loc": "outside upper center", "ncols": 3, "frameon": False}
    figure.legend(handles.values(), handles.keys(), title=title, fontsize=9, title_fontsize=9, **place)
    return figure


def names(rows: Iterator[Row]) -> list[str]:
    """The metrics, in the order of their panels."""
    found = {"val": dict.fromkeys(FIRST), "train": {}}
    for row in rows:
        found[row["split"]] |= dict.fromkeys(row)
    return [name for name in found["val"] | found["train"] if name not in NO_CURVE]


def draw_metric(axes: "Axes", name: str, runs: Mapping[str, Sequence[Row]]) -> None:
    """The lines of a metric: of the training, of the raw and of the EMA weights, wherever it was measured."""
    values: list[float] = []
    colors = cycle(f"C{number}" for number in range(10))
    for run, rows in runs.items():
        color_of_run = next(colors)
        for (kind, style), color_of_kind in zip(STYLES.items(), ("C7", "C0", "C1"), strict=True):
            own = [row for row in rows if kind_of(row) == kind and name in row]
            if not own:
                continue
            heights = [math.nan if row[name] is None else row[name] for row in own]
            values += [height for height in heights if math.isfinite(height)]
            axes.plot(
                epochs([row["step"] for row in own], rows),
                heights,
                label=f"{run}: {kind}" if run else kind,
                color=color_of_run if run else color_of_kind,
                marker="." if len(own) < 30 else None,
                **style,
            )
    title = LABELS.get(name, name)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    if name == "loss" and min(values, default=0) > 0 and max(values) > 10**DECADES * min(values):
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(axis="y", scilimits=(-2, 5), useMathText=True)
    if title.endswith("%") and max(values, default=0) <= 100:
        axes.set_ylim(top=min(axes.get_ylim()[1], 101))


def kind_of(row: Row) -> str:
    if row["split"] == "train":
        return "training"
    return f"validation, {'EMA' if row.get('weights') == 'ema' else 'raw'} weights"


def epochs(steps: Sequence[int], rows: Sequence[Row]) -> Sequence[float]:
    """The epochs, with fractions, that end with these updates. The validations tell how many updates an epoch has."""
    import numpy as np

    ends = {0: 0.0} | {row["step"]: row["epoch"] for row in rows if row["split"] == "val"}
    last, newest = max(ends), max(row["step"] for row in rows)
    if newest > last > 0:
        ends[newest] = ends[last] * newest / last  # an epoch that is not complete
    positions: list[float] = np.interp(steps, list(ends), list(ends.values())).tolist()
    return positions
