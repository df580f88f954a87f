"""Cross-validation: train a run for each fold, each with another part of the images held out, and average the metrics.

    python scripts/cross_validate.py data=table data.path=labels.csv 'data.labels=[label]'
    python scripts/cross_validate.py --folds 10 --start "torchrun --nproc-per-node=8" data=folder data.root=/photos

The script passes all other arguments to train.py. Fold k is a run in FOLDER/fold_k. A second call continues where the
first one stopped. The metrics are those of the last validation of each run, not of its best epoch, because the best
epoch is chosen with the held-out images. FOLDER/cross_validation.json and .csv hold them, and the mean and the standard
deviation over the folds (with n - 1).
"""

import argparse
import json
import math
import sys
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # because scripts/ is not installed

from scripts.training_runs import last_validation, refuse_set_here, train_unless_finished
from xcit import InputError
from xcit.checkpoint import LAST
from xcit.command import ArgumentParser, guarded
from xcit.errors import TrainingError
from xcit.storage import csv_text, read_tensors, without_nan, write_text

Row = dict[str, float | str]


@guarded
def main() -> None:
    arguments, overrides = parse_arguments()
    folder = Path(arguments.folder)
    # Train each fold that is not there yet.
    folds = [folder / f"fold_{number}" for number in range(arguments.folds)]
    unfinished = []
    for number, path in enumerate(folds):
        print(f"fold {number} of {arguments.folds}: {path}", file=sys.stderr, flush=True)
        fold = [f"data.folds={arguments.folds}", f"data.fold={number}"]
        if not train_unless_finished(path, arguments.start, [*overrides, *fold]):
            unfinished.append(path)
    if unfinished:
        raise TrainingError(f"{unfinished[0]}: was not completed (see above); call the script again to continue")
    # Show and save what was measured.
    headline = read_tensors(folds[0] / LAST)["headline"]
    rows = averaged([last_validation(path) for path in folds], headline)
    write_text(folder / "cross_validation.json", json.dumps(without_nan(rows), indent=2) + "\n")
    write_text(folder / "cross_validation.csv", csv_text(rows))
    print_table(rows, headline)
    print(f"folder: {folder}")


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--folder", default="runs/cross_validation")
    parser.add_argument("--folds", type=int, default=5, help="number of folds (default: %(default)s)")
    parser.add_argument("--start", default=sys.executable, help='the command that starts train.py: "torchrun …"')
    arguments, overrides = parser.parse_known_args()
    if arguments.folds < 2:
        raise InputError(f"--folds={arguments.folds}: must be at least 2")
    refuse_set_here(overrides, ("data.fold", "data.folds", "run_dir", "resume"), "--folder and --folds")
    return arguments, overrides


def averaged(folds: list[dict[str, dict[str, float]]], headline: str) -> list[Row]:
    """A row for each kind of weights and metric: its mean, its standard deviation, and its value in each fold.

    The headline metric comes first, and "images", whose sum matters, is left out.
    """
    rows: list[Row] = []
    for weights, metrics in folds[0].items():
        for metric in sorted(metrics, key=lambda name: name != headline):
            values = [fold[weights].get(metric) for fold in folds]
            numbers = [math.nan if value is None else float(value) for value in values]
            if metric != "images":
                of_folds = {f"fold_{number}": value for number, value in enumerate(numbers)}
                rows.append(
                    {"weights": weights, "metric": metric, "mean": mean(numbers), "std": stdev(numbers), **of_folds}
                )
    return rows


def print_table(rows: list[Row], headline: str) -> None:
    table = Table(title=f"last validation, mean ± standard deviation over {len(rows[0]) - 4} folds")
    for column in ("weights", "metric", "mean ± std", *[key for key in rows[0] if key.startswith("fold_")]):
        table.add_column(column.replace("_", " "))
    for row in rows:
        values = [f"{value:.3f}" for key, value in row.items() if key.startswith("fold_")]
        style = "bold" if row["metric"] == headline else ""
        cells = (str(row["weights"]), str(row["metric"]), f"{row['mean']:.3f} ± {row['std']:.3f}", *values)
        table.add_row(*cells, style=style)
    Console().print(table)


if __name__ == "__main__":
    main()
