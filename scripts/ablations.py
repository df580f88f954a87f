"""Train the paper's ablation (table 4 and appendix), one switch of the model at a time, and print the table.

    python scripts/ablations.py                                                       # on the digits
    python scripts/ablations.py --start "torchrun --nproc-per-node=8" model=xcit_s12 data=imagenet data.root=/path

The script passes all other arguments to train.py. Each row is a run in a folder below FOLDER. A second call continues
where the first one stopped. The table is printed and written to FOLDER/ablations.csv.
"""

import argparse
import sys
from pathlib import Path

from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # because scripts/ is not installed

from scripts.training_runs import last_validation, train_unless_finished
from xcit.command import ArgumentParser, guarded
from xcit.errors import TrainingError, choose
from xcit.models.ablations import ABLATIONS, as_overrides
from xcit.storage import csv_text, write_text
from xcit.tables import show_table

Row = dict[str, float | str]


@guarded
def main() -> None:
    arguments, overrides = parse_arguments()
    folder = Path(arguments.folder)
    names = arguments.only.split(",") if arguments.only else list(ABLATIONS)
    chosen = {name: choose(ABLATIONS, name, "--only") for name in names}
    # Train each row that is not there yet.
    rows: list[Row] = []
    for number, (name, (what, options)) in enumerate(chosen.items(), start=1):
        switch = as_overrides(options)
        print(f"{number}/{len(chosen)} {what}", file=sys.stderr, flush=True)
        is_finished = train_unless_finished(folder / name, arguments.start, [*overrides, *switch])
        measured = last_row(folder / name) if is_finished else {"outcome": "not completed"}
        rows.append({"model": what, "switch": " ".join(switch), **measured})
    # Show and save what was measured.
    write_text(folder / "ablations.csv", csv_text(rows))
    print_table(rows)
    if any("outcome" in row for row in rows):
        raise TrainingError("not every run was completed (see above); call the script again to continue")


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--folder", default="runs/ablations")
    parser.add_argument("--start", default=sys.executable, help='the command that starts train.py: "torchrun …"')
    parser.add_argument("--only", metavar="NAME,NAME", help=f"rows to train, of {', '.join(ABLATIONS)}")
    return parser.parse_known_args()


def last_row(folder: Path) -> Row:
    """Top-1 and loss of the last validation, for raw weights and EMA."""
    return {
        f"{weights} {metric}": metrics[metric]
        for weights, metrics in last_validation(folder).items()
        for metric in ("top1", "loss")
    }


def print_table(rows: list[Row]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title="last epoch, validation")
    for column in columns:
        table.add_column(column)
    for row in rows:
        cells = (row.get(column, "") for column in columns)
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells))
    show_table(table)


if __name__ == "__main__":
    main()
