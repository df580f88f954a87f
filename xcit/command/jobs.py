"""What a multirun (-m) prints: the values of each job as it starts, and a table of all jobs at the end."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.markup import escape
from rich.table import Column, Table

from ..credentials import without_credentials
from ..tables import show_table
from .printing import is_main


@dataclass(frozen=True)
class FailedJob:
    """What a job returns that has failed. The multirun goes on with the next one."""

    message: str


class JobResult(float):
    """What a job returns: the headline metric, as a number for Hydra's sweepers, with its name and the run's folder."""

    def __new__(cls, value: float, metric: str, folder: Path) -> "JobResult":
        result = super().__new__(cls, value)
        result.metric, result.folder = metric, folder
        return result

    metric: str
    folder: Path


def in_multirun() -> bool:
    """Whether Hydra runs this as one of several jobs."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


class Jobs(Callback):
    """A Hydra callback, named in conf/train.yaml and conf/eval.yaml."""

    def __init__(self) -> None:
        self.done: list[tuple[str, Any]] = []
        """The values of each job, and what it returned."""
        self.typed: list[str] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.typed = list(config.hydra.overrides.task)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if in_multirun() and is_main():
            print(f"job {len(self.done) + 1}: {self.values(config)}", flush=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if in_multirun():
            self.done.append((self.values(config), job_return.return_value))

    def values(self, config: DictConfig) -> str:
        """The arguments that differ from job to job, as this job has them."""
        own = [argument for argument in config.hydra.overrides.task if argument not in self.typed]
        return without_credentials(" ".join(own)) or "as typed"

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table. A failed job ends the process with status 1."""
        failed = sum(isinstance(result, FailedJob) for _, result in self.done)
        if is_main():
            title = f"{len(self.done)} jobs, {failed} failed"
            table = Table(
                "job", "values", "result", Column("folder", overflow="fold"), title=title, title_justify="left"
            )
            for number, (values, result) in enumerate(self.done, 1):
                folder = str(result.folder) if isinstance(result, JobResult) else ""
                table.add_row(str(number), escape(values), escape(describe_result(result)), escape(folder))
            show_table(table)
        if failed:
            sys.exit(1)


def describe_result(result: Any) -> str:
    """As "top1 96.11"."""
    if isinstance(result, FailedJob):
        return f"failed: {result.message}"
    return f"{result.metric} {result:.2f}" if isinstance(result, JobResult) else "done"
