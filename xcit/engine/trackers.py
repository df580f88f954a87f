"""Trackers: where metrics go besides metrics.jsonl. A CSV table, TensorBoard, wandb, MLflow."""

import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from ..credentials import without_credentials
from ..storage import csv_text, write_text

Row = dict[str, Any]
Mode = Literal["online", "offline", "disabled"]
PROJECT = "xcit"
"""wandb's project, or MLflow's experiment, if neither the configuration nor their own settings name one."""
MLFLOW_TAG = "xcit.run"
"""The tag by which a resume finds its run on MLflow, which chooses its own ids."""


class Tracker(Protocol):
    def log(self, row: Row) -> None: ...

    def close(self) -> None: ...


def make_tracker(
    name: str,
    folder: Path,
    *,
    after_step: int,
    run_id: str,
    mode: Mode | None = None,
    project: str | None = None,
    entity: str | None = None,
    config: dict[str, Any],
) -> "Shielded":
    """The tracker called `name`. If it fails, the run continues without it.

    Args:
        after_step: the update that the run continues from.
        run_id, mode, project, entity, config: wandb's. See `WandbTracker` for None. MLflow has no mode and entity.
    """
    makers: dict[str, Callable[[], Tracker]] = {
        "none": NullTracker,
        "csv": lambda: CsvTracker(folder),
        "tensorboard": lambda: TensorBoardTracker(folder, after_step=after_step),
        "wandb": lambda: WandbTracker(folder, run_id=run_id, mode=mode, project=project, entity=entity, config=config),
        "mlflow": lambda: MlflowTracker(folder, run_id=run_id, experiment=project, config=config),
    }
    return Shielded(name, makers[name])


class NullTracker:
    def log(self, row: Row) -> None:
        pass

    def close(self) -> None:
        pass


class CsvTracker:
    """metrics.csv: metrics.jsonl as a table, written at each validation."""

    def __init__(self, folder: Path) -> None:
        self.source, self.target = folder / "metrics.jsonl", folder / "metrics.csv"

    def log(self, row: Row) -> None:
        if row["split"] == "val":
            self.close()

    def close(self) -> None:
        if self.source.exists():
            rows = [json.loads(line) for line in self.source.read_text().splitlines()]
            write_text(self.target, csv_text(rows))


class TensorBoardTracker:
    """tensorboard/ in the run folder."""

    def __init__(self, folder: Path, *, after_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=after_step + 1)

    def log(self, row: Row) -> None:
        for name, value in scalars(row).items():
            self.writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self.writer.close()


class WandbTracker:
    """A run on wandb. A resume continues the same one, since its id is part of the training state.

    What is None, or is not an argument here, wandb takes from its environment variables (WANDB_MODE, WANDB_TAGS, …) or
    settings files. Our own defaults count only where those say nothing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        run_id: str,
        mode: Mode | None,
        project: str | None,
        entity: str | None,
        config: dict[str, Any],
    ) -> None:
        import wandb

        known = wandb.setup().settings  # from environment variables and settings files
        self.run = wandb.init(
            id=run_id,
            resume=None if known.resume or known.resume_from or known.fork_from else "allow",
            mode=mode,
            project=project or known.project or PROJECT,
            entity=entity,
            config=config,
            dir=None if "WANDB_DIR" in os.environ else folder,
            name=None if known.run_name else "/".join(folder.parts[-2:]),
            settings=wandb.Settings() if "WANDB_SILENT" in os.environ else wandb.Settings(silent=True),
        )

    @property
    def home(self) -> dict[str, str]:
        """Where the run is on wandb. A resume needs it, because the environment may have changed."""
        return {key: value for key in ("project", "entity") if (value := getattr(self.run, key))}

    def log(self, row: Row) -> None:
        # Steps are logged under their own key: wandb's own must rise, but raw and EMA weights share one.
        self.run.log(scalars(row) | {"step": row["step"], "epoch": row["epoch"]})

    def close(self) -> None:
        self.run.finish()


class MlflowTracker:
    """A run on MLflow, at MLFLOW_TRACKING_URI or in mlflow.db in the run folder. A resume continues the same one.

    experiment: None means MLFLOW_EXPERIMENT_NAME, or otherwise our own default.
    """

    def __init__(self, folder: Path, *, run_id: str, experiment: str | None, config: dict[str, Any]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute() / 'mlflow.db'}"
        self.client = MlflowClient(tracking_uri=store)
        name = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        self.home = {"project": name}
        known = self.client.get_experiment_by_name(name)
        place = known.experiment_id if known else self.client.create_experiment(name)
        found = self.client.search_runs([place], f"tags.`{MLFLOW_TAG}` = '{run_id}'")
        if found:
            self.run_id = found[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            return
        tags = {MLFLOW_TAG: run_id}
        self.run_id = self.client.create_run(place, tags=tags, run_name="/".join(folder.parts[-2:])).info.run_id
        params = [Param(key, str(value)) for key, value in flat(config)]
        for first in range(0, len(params), 100):  # a call takes no more
            self.client.log_batch(self.run_id, params=params[first : first + 100])

    def log(self, row: Row) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        measured = scalars(row) | {"epoch": row["epoch"]}
        self.client.log_batch(self.run_id, [Metric(name, value, now, row["step"]) for name, value in measured.items()])

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


class Shielded:
    """A tracker whose first failure prints a warning and switches it off, so that the run continues."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self.name = name
        self.tracker: Tracker | None = None
        self.attempt(lambda: setattr(self, "tracker", make()))

    def log(self, row: Row) -> None:
        if self.tracker:
            tracker = self.tracker
            self.attempt(lambda: tracker.log(row))

    def close(self) -> None:
        if self.tracker:
            self.attempt(self.tracker.close)

    @property
    def home(self) -> dict[str, str]:
        """The options that lead a resume to the same place; see `WandbTracker.home`."""
        return getattr(self.tracker, "home", {})

    def attempt(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # whatever a tracking service may raise
            self.tracker = None
            reason = without_credentials(str(error))
            print(f"warning: logger={self.name} failed and is off from here on ({reason})", file=sys.stderr)


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a nested configuration, under names like optim.lr."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def scalars(row: Row) -> dict[str, float]:
    """The row's measurements, under names like val_ema/top1."""
    prefix = row["split"] + (f"_{row['weights']}" if "weights" in row else "")
    labels = ("step", "epoch", "split", "weights")
    return {f"{prefix}/{name}": value for name, value in row.items() if name not in labels and value is not None}


def new_run_id() -> str:
    """What WANDB_RUN_ID says, as for wandb's sweeps, or a random id."""
    return os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8]
