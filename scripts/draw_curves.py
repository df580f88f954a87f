"""Draw the metrics of one or several runs in one picture: losses, learning rate and what the validations measured.

    python scripts/draw_curves.py runs/mine                                     # writes curves.png
    python scripts/draw_curves.py runs/first runs/second --output compared.png  # a color for each run

A run draws its own curves.png when it ends. This script also draws runs that are not finished.
"""

from pathlib import Path

import yaml

from xcit.command import ArgumentParser, guarded
from xcit.engine.curves import read_rows, shown, write_curves
from xcit.errors import InputError
from xcit.tasks import TASKS


@guarded
def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="file of the picture, a .png")
    arguments = parser.parse_args()
    if arguments.output.suffix != ".png":
        raise InputError(f"--output={arguments.output}: must end in .png")
    if not arguments.output.absolute().parent.is_dir():
        raise InputError(f"--output={arguments.output}: its folder does not exist")
    runs = {}
    for path in dict.fromkeys(arguments.runs):
        rows = read_rows(path / "metrics.jsonl")
        runs[str(path) if len(arguments.runs) > 1 else ""] = shown(rows, metrics_of(path))
        if not any(row["split"] == "val" for row in rows):
            raise InputError(f"{path}: has no validation yet")
    write_curves(arguments.output, runs)
    print(f"{arguments.output}: {len(runs)} run{'s' if len(runs) > 1 else ''}")


def metrics_of(run: Path) -> tuple[str, ...]:
    """The metrics that the run's task draws; empty for all, also if the task is not known."""
    try:
        task = yaml.safe_load((run / "config.yaml").read_text())["task"]["name"]
        return TASKS[task].in_curves
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError):
        return ()


if __name__ == "__main__":
    main()
