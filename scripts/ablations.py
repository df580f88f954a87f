"""Train the paper's ablation (table 4 and appendix), one switch of the model at a time, and print the table.

    python scripts/ablations.py                                                       # on the digits
    python scripts/ablations.py --start "torchrun --nproc-per-node=8" model=xcit_s12 data=imagenet data.root=/path

The script passes all other arguments to train.py. Each row is a run in a folder below FOLDER. A second call continues
where the first one stopped. The table is printed and written to FOLDER/ablations.csv.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from rich.table import Table

from xcit import InputError
from xcit.command import ArgumentParser, guarded
from xcit.errors import TrainingError, choose
from xcit.models.ablations import ABLATIONS, as_overrides
from xcit.storage import csv_text, write_text
from xcit.tables import show_table

Row = dict[str, float | str]

TRAIN = Path(__file__).parents[1] / "train.py"


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
        command = [*overrides, *switch, f"run_dir={folder / name}", "resume=auto"]
        print(f"{number}/{len(chosen)} {what}", file=sys.stderr, flush=True)
        require_same(folder / name, command)
        if not (folder / name / "results.json").is_file():
            train(arguments.start, command)
        rows.append({"model": what, "switch": " ".join(switch), **last_validation(folder / name)})
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


def require_same(folder: Path, command: list[str]) -> None:
    """Refuse a folder whose run was made by another command."""
    if (folder / "environment.json").is_file():
        before = shlex.split(json.loads((folder / "environment.json").read_text())["command"])[1:]
        if before != command:
            raise InputError(f"--folder: {folder} holds a run of other overrides ({shlex.join(before)})")


def train(start: str, overrides: list[str]) -> None:
    """Train one row. Its progress and errors are shown; its report is not, as the table replaces it."""
    command = [*shlex.split(start), str(TRAIN), *overrides]
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    except OSError as error:
        raise InputError(f"--start={start}: cannot be run ({error.strerror})") from None
    if done.returncode == 2:
        raise InputError("the run was refused (see above)")


def last_validation(folder: Path) -> Row:
    """Top-1 and loss of the last validation, for raw weights and EMA; or that the run was not completed."""
    if not (folder / "results.json").is_file():
        return {"outcome": "not completed"}
    found: Row = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["split"] == "val":
            found |= {f"{row['weights']} {metric}": row[metric] for metric in ("top1", "loss")}
    return found


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
