"""Search settings with Optuna: each trial is a run of train.py, with values that the runs before it suggest.

    python scripts/sweep.py --search optim.lr=1e-3..1e-1:log --search augment=light,deit data=digits train.epochs=4
    python scripts/sweep.py --trials 50 --start "torchrun --nproc-per-node=8" --search model.drop_path_rate=0..0.3 …

KEY=LOW..HIGH searches a range (of integers, if both are), with :log on a logarithmic scale, and KEY=A,B,C a choice. The
script passes all other arguments to train.py. Trial k is a run in FOLDER/trial_k. Its score is the metric of its
best.pt (train.select chooses another one). A second call continues where the first one stopped. FOLDER/sweep.json
and .csv hold a row for each trial, the best one first. Needs pip install 'xcit[sweep]'.

`train.py -m` trains every combination of a few values instead.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # because scripts/ is not installed

from scripts.training_runs import refuse_set_here, train_unless_finished
from xcit import InputError
from xcit.checkpoint import LAST, merit, shown
from xcit.command import ArgumentParser, guarded
from xcit.storage import csv_text, read_tensors, write_text

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
Row = dict[str, Any]


@guarded
def main() -> None:
    arguments, overrides = parse_arguments()
    try:
        import optuna
    except ImportError:
        raise InputError("optuna is not installed; pip install 'xcit[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = dict(read_range(text) for text in arguments.search)
    folder = Path(arguments.folder)
    # The sampler is a function of its seed and the scores so far: a second call asks for the same values.
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=arguments.seed))
    rows: list[Row] = []
    for number in range(arguments.trials):
        trial, path = study.ask(space), folder / f"trial_{number}"
        values = {key: str(value) for key, value in trial.params.items()}  # with all digits, as the study has them
        own = [f"{key}={value}" for key, value in values.items()]
        print(f"trial {number} of {arguments.trials}: {' '.join(own)}", file=sys.stderr, flush=True)
        row: Row = {"trial": number, **values, "metric": None, "score": None, "folder": str(path)}
        if train_unless_finished(path, arguments.start, [*overrides, *own]):
            saved = read_tensors(path / LAST)
            row |= {"metric": saved["headline"], "score": saved["best"]}
        if row["score"] is None:  # it failed, or finished no epoch
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, merit(row["metric"], row["score"]))
        rows.append(row)
    rows.sort(key=lambda row: -merit(row["metric"], row["score"]) if row["score"] is not None else float("inf"))
    write_text(folder / "sweep.json", json.dumps(rows, indent=2) + "\n")
    write_text(folder / "sweep.csv", csv_text(rows))
    print_table(rows)
    print(f"folder: {folder}")


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--search", action="append", required=True, metavar="KEY=VALUES", help="see above; repeatable")
    parser.add_argument("--trials", type=int, default=20, help="number of runs (default: %(default)s)")
    parser.add_argument("--folder", default="runs/sweep")
    parser.add_argument("--seed", type=int, default=0, help="seed of the search (default: %(default)s)")
    parser.add_argument("--start", default=sys.executable, help='the command that starts train.py: "torchrun …"')
    arguments, overrides = parser.parse_known_args()
    if arguments.trials < 1:
        raise InputError(f"--trials={arguments.trials}: must be at least 1")
    refuse_set_here([*overrides, *arguments.search], ("run_dir", "resume"), "--folder")
    return arguments, overrides


def read_range(text: str) -> tuple[str, "BaseDistribution"]:
    """The key and what is searched.

    Raises:
        InputError: the text is neither a range nor a choice.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    key, _, values = text.partition("=")
    bounds = re.fullmatch(rf"({NUMBER})\.\.({NUMBER})(:log)?", values)
    if bounds:
        whole = all(re.fullmatch(r"[+-]?\d+", bound) for bound in bounds.groups()[:2])
        low, high, log = float(bounds[1]), float(bounds[2]), bool(bounds[3])
        if low >= high or (log and low <= 0):
            raise InputError(f"--search={text}: must rise{' from a number greater than 0' if log else ''}")
        return key, IntDistribution(int(low), int(high), log) if whole else FloatDistribution(low, high, log)
    choices = values.split(",")
    if not key or len(choices) < 2 or not all(choices):
        raise InputError(f"--search={text}: must be KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=A,B,…")
    return key, CategoricalDistribution(choices)


def shortened(value: str) -> str:
    """A number with digits that a table does not need, without them; other values stay."""
    return f"{float(value):.4g}" if re.fullmatch(NUMBER, value) and not value.isdigit() else value


def print_table(rows: list[Row]) -> None:
    keys = [key for key in rows[0] if key not in ("trial", "metric", "score", "folder")]
    table = Table("trial", *keys, "score", "folder", title=f"{len(rows)} trials, the best one first")
    for row in rows:
        score = "failed" if row["score"] is None else f"{row['metric']} {shown(row['metric'], row['score'])}"
        table.add_row(str(row["trial"]), *[shortened(row[key]) for key in keys], score, row["folder"])
    Console(soft_wrap=True).print(table)


if __name__ == "__main__":
    main()
