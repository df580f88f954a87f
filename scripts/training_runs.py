"""Start train.py for one of several runs, as scripts/ablations.py, cross_validate.py and sweep.py do."""

import json
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from xcit import InputError

TRAIN = Path(__file__).parents[1] / "train.py"


def train_unless_finished(folder: Path, start: str, overrides: list[str]) -> bool:
    """Train one run in its folder, or continue it; return whether it is finished.

    Args:
        folder: The run folder.
        start: The command that starts train.py.
        overrides: The arguments of train.py, without run_dir and resume.

    Raises:
        InputError: The folder holds a run of other overrides, or the run was refused.
    """
    command = [*overrides, f"run_dir={folder}", "resume=auto"]
    require_same(folder, command)
    if not (folder / "results.json").is_file():
        train(start, command)
    return (folder / "results.json").is_file()


def refuse_set_here(overrides: Sequence[str], keys: Sequence[str], options: str) -> None:
    """Refuse overrides of keys that the script sets itself. options: of the script, which set them."""
    for override in overrides:
        if override.lstrip("+").partition("=")[0] in keys:
            raise InputError(f"{override}: is set by this script, see {options}")


def require_same(folder: Path, command: list[str]) -> None:
    """Refuse a folder whose run was made by another command."""
    if (folder / "environment.json").is_file():
        before = shlex.split(json.loads((folder / "environment.json").read_text())["command"])[1:]
        if before != command:
            raise InputError(f"--folder: {folder} holds a run of other overrides ({shlex.join(before)})")


def train(start: str, overrides: list[str]) -> None:
    """Train one run. Its progress and errors are shown; its report is not, as a table replaces it."""
    command = [*shlex.split(start), str(TRAIN), *overrides]
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    except OSError as error:
        raise InputError(f"--start={start}: cannot be run ({error.strerror})") from None
    if done.returncode == 2:
        raise InputError("the run was refused (see above)")


def last_validation(folder: Path) -> dict[str, dict[str, float]]:
    """The metrics of the last validation of a run: "raw" and, if it kept a moving average, "ema" → metrics."""
    found: dict[str, dict[str, float]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["split"] == "val":
            found[row["weights"]] = {
                name: value for name, value in row.items() if name not in ("step", "epoch", "split", "weights")
            }
    return found
