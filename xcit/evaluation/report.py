"""The report of an evaluation: files, a picture and a table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from ..errors import InputError
from ..metric_names import METRIC_NAMES
from ..storage import csv_text, without_nan, write_atomically, write_text
from ..tables import show_table
from .resolutions import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IN_FILES_ONLY = {
    *("box_map75", "box_map_small", "box_map_medium", "box_map_large"),
    *("mask_map75", "mask_map_small", "mask_map_medium", "mask_map_large"),
    *("balanced_accuracy", "macro_f1", "auroc", "rmse"),
}
"""The metrics that the table does not show, unless one is the headline metric; the files do."""
VARIANT = "@"
"""In the key of a metric with another setting, as knn_top1@k10. The table does not show these; the files do."""


def write_report(folder: Path, rows: Sequence[Row], headline: str, trained_at: int | None = None) -> None:
    """Write results.json (a list of rows), results.csv and HEADLINE_vs_resolution.png; print a table and the folder.

    Args:
        headline: the metric to draw.
        trained_at: the training resolution, which is marked.
    """
    plain = [without_nan(row) for row in rows]
    write_text(folder / "results.json", json.dumps(plain, indent=2) + "\n")
    write_text(folder / "results.csv", csv_text(plain))
    figure = draw(rows, headline, trained_at)
    write_atomically(folder / f"{headline}_vs_resolution.png", lambda file: figure.savefig(file, format="png"))
    print_table(rows, headline, trained_at)
    print(f"run folder: {folder}")


def read_score(results: Path, headline: str, resolution: int) -> float:
    """The headline metric of the raw weights at a resolution, from a results.json.

    Raises:
        InputError: the file cannot be read, or has no such row.
    """
    try:
        return score_of(json.loads(results.read_text()), headline, resolution)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{results}: has no {headline} of the raw weights at {resolution} ({error})") from None


def score_of(rows: Sequence[Row], headline: str, resolution: int) -> float:
    """The headline metric of the raw weights at a resolution."""
    (found,) = (row[headline] for row in rows if (row["resolution"], row["weights"]) == (resolution, "raw"))
    return float(found)


def draw(rows: Sequence[Row], headline: str, trained_at: int | None) -> "Figure":
    from matplotlib.figure import Figure  # here, since it takes half a second to import and a run draws only at its end

    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for weights in dict.fromkeys(row["weights"] for row in rows):
        own = sorted((row["resolution"], row[headline]) for row in rows if row["weights"] == weights)
        axes.plot(*zip(*own, strict=True), marker="o", label=f"{weights} weights")
    if trained_at:
        axes.axvline(trained_at, color="grey", linestyle="--", linewidth=1, label=f"training resolution ({trained_at})")
    axes.set_xticks(sorted({row["resolution"] for row in rows}))
    axes.set_xlabel("test resolution (pixels)")
    axes.set_ylabel(METRIC_NAMES.get(headline, headline))
    first = rows[0]
    axes.set_title(f"{title_of(first)}, crop ratio {first['crop_ratio']}")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def title_of(row: Row) -> str:
    """What the rows of an evaluation share."""
    note = f", {row['inference']}" if "inference" in row else ""
    return f"{row['model']} on {row['eval_set']}, {row['images']:,} images{note}"


def print_table(rows: Sequence[Row], headline: str, trained_at: int | None) -> None:
    first = rows[0]
    labels = ("model", "checkpoint", "weights", "eval_set", "resolution", "crop_ratio", "inference", "images")
    measured = [key for key in first if key not in labels and VARIANT not in key]
    measured = [key for key in measured if key == headline or key not in IN_FILES_ONLY]
    printed = Table(title=title_of(first))
    for column in ("resolution", "weights", *measured):
        printed.add_column(METRIC_NAMES.get(column, column), justify="right")
    for row in rows:
        resolution = f"{row['resolution']}{' (training)' if row['resolution'] == trained_at else ''}"
        printed.add_row(resolution, row["weights"], *(f"{row[key]:,.{decimals(key)}f}" for key in measured))
    show_table(printed)


def decimals(key: str) -> int:
    return {
        "images_per_second": 0,
        "peak_memory_mb": 0,
        "queries": 0,
        "loss": 3,
        "linear_lr": 4,
        "r2": 4,
        "mae": 4,
        "rmse": 4,
    }.get(key, 2)
