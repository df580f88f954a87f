"""How a command starts and ends: status 0; one clear line and 2 for input that cannot be used; 1 for anything else."""

import argparse
import errno
import functools
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ..config import EvalConfig, TrainConfig
from ..config.sections import Section
from ..credentials import without_credentials
from ..errors import InputError, StoppedTrainingError, TrainingError, WriteError
from ..openmp import limit_spinning
from ..signals import ignore_signals, stop_at_signals
from .arguments import choices_and_typed_keys, is_multirun, parse, prepare
from .composing import check, compose_jobs, composed, explain, with_home, without_hydra
from .help import help_text
from .jobs import FailedJob, JobResult, in_multirun
from .printing import is_main, print_error, print_notices, print_traceback, stop
from .settings import Settings, read_settings

__all__ = ["ArgumentParser", "JobResult", "answer", "answer_parsed", "choices_and_typed_keys", "guarded", "run"]

SCHEMAS: dict[str, type[Section]] = {"train": TrainConfig, "eval": EvalConfig}
"""Entry point → the schema of its configuration."""
typed_arguments: ContextVar[list[str]] = ContextVar("typed_arguments")
"""The command line as it was typed. Hydra reads another one from sys.argv."""


class ArgumentParser(argparse.ArgumentParser):
    """The parser of a script: its help begins with `text` unchanged, and bad arguments raise an InputError."""

    def __init__(self, text: str | None) -> None:
        super().__init__(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but ~ is the home folder in --out=~/figures, too. The shell replaces it in --out ~/figures."""
        typed = sys.argv[1:] if args is None else args
        home = str(Path.home())
        return super().parse_known_args([re.sub(r"^(--[\w-]+=)~(?=/|$)", rf"\g<1>{home}", a) for a in typed], namespace)

    def error(self, message: str) -> NoReturn:
        raise InputError(message.removeprefix("argument "))


def guarded(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a main function: InputError, TrainingError and WriteError end the process with one line and a status.

    It stands below @hydra.main, because Hydra adds lines of its own to an exception. The status is the error's
    exit_status, or 2. An error whose of_one_process is true is raised in one process only, which prints it. A job of a
    multirun ends with the line alone, and the next one begins.
    """

    @functools.wraps(main)
    def guard(*args: Any) -> Any:
        if args:  # Hydra has read its arguments; environment.json and wandb get those that were typed
            sys.argv[1:] = without_credentials(typed_arguments.get())
            args = tuple(map(with_home, args))
        try:
            with refuse_long_paths():
                return main(*args)
        except (InputError, TrainingError, WriteError) as error:
            status = getattr(error, "exit_status", 1 if isinstance(error, WriteError) else 2)
            alone = getattr(error, "of_one_process", isinstance(error, WriteError))
            if isinstance(error, StoppedTrainingError):
                ignore_signals()
                stop(str(error), status, alone=alone)
            if not in_multirun():
                stop(str(error), status, alone=alone)
            print_error(str(error), alone=alone)
            return FailedJob(str(error))
        except KeyboardInterrupt as interrupt:
            stop(f"stopped by {interrupt}" if str(interrupt) else "interrupted", 1)
        except Exception as error:
            if not in_multirun():
                raise
            print_traceback(type(error), error, error.__traceback__)
            return FailedJob(f"{type(error).__name__}: {error}")

    return guard


@contextmanager
def refuse_long_paths() -> Iterator[None]:
    """Turn the system's error for a path that is too long into an InputError, because only a user's path can be."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise InputError(f"{error.filename}: cannot be used ({error.strerror})") from None


def answer(file: str, text: str | None = None) -> None:
    """Print the help, or end with status 2 if there is a mistake on the command line. Set up OpenMP.

    The entry points call it before they import torch, which takes seconds.

    file: the entry point, with conf/ beside it. text: the help of a script that takes the options of train.py.
    """
    limit_spinning(os.environ)
    settings, schema = settings_of(file)
    try:
        args = parse(sys.argv[1:], settings)
        if args.help or args.cfg or args.info:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends without an error
        if args.help:
            if is_main():
                print(text or help_text(settings, composed(settings, prepare(args.overrides, settings))))
            sys.exit(0)
        for raw in configurations(settings):
            check(raw, schema)
    except InputError as error:
        stop(str(error), 2)
    say_loading()


def answer_parsed(parse: Callable[[], object]) -> None:
    """As `answer`, for a script with options of its own. parse: reads them, and raises an InputError for a mistake."""
    limit_spinning(os.environ)
    try:
        parse()
    except InputError as error:
        stop(str(error), 2)
    say_loading()


def say_loading() -> None:
    if sys.stderr.isatty() and is_main():
        print("loading PyTorch", file=sys.stderr, flush=True)


def configurations(settings: Settings) -> Iterator[DictConfig]:
    """The configuration of each job that the command line asks for, with Hydra's own at `hydra`.

    There is none if Hydra only prints something, or if files or a sweeper other than ours make the configuration.

    Raises:
        InputError: there is a mistake on the command line.
    """
    prepared = prepare(sys.argv[1:], settings)
    args = parse(prepared, settings)
    other_files = args.config_path or args.config_name or args.config_dir
    other_sweeper = any(re.match(r"\+*hydra[/.]sweeper", override) for override in args.overrides)
    if args.cfg or args.info or args.shell_completion or args.hydra_help or other_files or other_sweeper:
        return
    if is_multirun(args):
        yield from compose_jobs(settings, args.overrides)
    else:
        yield composed(settings, args.overrides)


def run(main: Callable[[], Any], file: str, check_job: Callable[[DictConfig], Any] | None = None) -> None:
    """Call a Hydra main. A command line that does not compose ends it with one line and status 2, a signal with 1.

    Args:
        main: the Hydra main.
        file: the entry point, with conf/ beside it.
        check_job: raises an InputError for a configuration that cannot be run. It is called for all jobs of a multirun
            before the first one begins.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra is to raise, not to print and exit with 1
    print_notices()
    sys.excepthook = print_traceback
    settings, _ = settings_of(file)
    try:
        with stop_at_signals():
            if check_job and is_multirun(parse(sys.argv[1:], settings)):
                check_jobs(check_job, settings)
            typed_arguments.set(sys.argv[1:])
            sys.argv[1:] = prepare(sys.argv[1:], settings)
            main()
    except KeyboardInterrupt as interrupt:
        stop(f"stopped by {interrupt}", 1)
    except InputError as error:
        stop(str(error), 2)
    except (HydraException, OmegaConfBaseException) as error:
        stop(explain(error, settings), 2)


def check_jobs(check_job: Callable[[DictConfig], Any], settings: Settings) -> None:
    """Check the configuration of each job of a multirun. That of a run to resume is not known yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are shown when the job begins
        for raw in configurations(settings):
            if raw.get("resume", "none") == "none":
                check_job(with_home(without_hydra(raw)))


def settings_of(file: str) -> tuple[Settings, type[Section]]:
    """What may be typed for an entry point, and the schema of its configuration."""
    path = Path(file).resolve()
    schema = SCHEMAS[path.stem]
    return read_settings(schema, path.stem, path.parent), schema
