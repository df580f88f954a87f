"""Draw the metrics of one or several runs in one picture: losses, learning rate and what the validations measured.

    python scripts/draw_curves.py runs/mine                                     # writes curves.png
    python scripts/draw_curves.py runs/first runs/second --output compared.png  # a color for each run

A run draws its own curves.png when it ends. This script also draws runs that are not finished.
"""

from pathlib import Path

from xcit.command import ArgumentParser, guarded
from xcit.engine.curves import read_rows, write_curves
from xcit.errors import InputError


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
        runs[str(path) if len(arguments.runs) > 1 else ""] = rows = read_rows(path / "metrics.jsonl")
        if not any(row["split"] == "val" for row in rows):
            raise InputError(f"{path}: has no validation yet")
    write_curves(arguments.output, runs)
    print(f"{arguments.output}: {len(runs)} run{'s' if len(runs) > 1 else ''}")


if __name__ == "__main__":
    main()
