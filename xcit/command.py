"""How a command ends: status 0; one clear line and 2 for input that cannot be used; 1 for anything else."""

import argparse
import functools
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NoReturn

from hydra._internal.utils import get_args
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from .credentials import without_credentials
from .errors import InputError, Notice, TrainingError, WriteError, did_you_mean, unknown
from .signals import stop_at_signals


class ArgumentParser(argparse.ArgumentParser):
    """The parser of a script: its help begins with `text` unchanged, and bad arguments raise an InputError."""

    def __init__(self, text: str | None) -> None:
        super().__init__(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise InputError(message.removeprefix("argument "))


def guarded(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a main function: InputError, TrainingError and WriteError end the process with one line and a status.

    It stands below @hydra.main, because Hydra adds lines of its own to an exception. The status is the error's
    exit_status, or 2. An error whose of_one_process is true is raised in one process only, which prints it.
    """

    @functools.wraps(main)
    def guard(*args: Any) -> Any:
        if args:  # Hydra has read the command line; environment.json and wandb get it without passwords and tokens
            sys.argv[1:] = without_credentials(sys.argv[1:])
        try:
            return main(*args)
        except (InputError, TrainingError) as error:
            stop(str(error), getattr(error, "exit_status", 2), alone=getattr(error, "of_one_process", False))
        except WriteError as error:
            stop(str(error), 1, alone=True)
        except KeyboardInterrupt as interrupt:
            stop(f"stopped by {interrupt}" if str(interrupt) else "interrupted", 1)

    return guard


def run(main: Callable[[], Any], keys: Sequence[str]) -> None:
    """Call a Hydra main. A command line that does not compose ends it with one line and status 2, a signal with 1.

    keys: every key of the configuration; the nearest one is suggested for a misspelt key.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra is to raise, not to print and exit with 1
    print_notices()
    sys.excepthook = print_traceback
    refuse_secrets_in_multirun(sys.argv[1:])
    try:
        with stop_at_signals():
            main()
    except (HydraException, OmegaConfBaseException) as error:
        stop(explain(error, keys), 2)
    except ValueError as error:
        if not str(error).startswith("Config group override must be"):
            raise
        stop(f"{nameless_choice(sys.argv[1:], keys)}: must be a name, which --help lists", 2)


def refuse_secrets_in_multirun(arguments: Sequence[str]) -> None:
    """End the process with status 2 if Hydra's multirun would write a password or token to its multirun.yaml."""
    by_mode = re.compile(r"\+*hydra\.mode=(?!RUN$|null$)")
    if get_args(arguments).multirun or any(map(by_mode.match, arguments)):
        for argument in arguments:
            shown = without_credentials(argument)
            if shown != argument:
                stop(f"{shown}: multirun would save its secret in multirun.yaml; use ~/.netrc, or start single runs", 2)


def typed_keys(overrides: Sequence[str]) -> list[str]:
    """The keys of Hydra overrides: "train.epochs" of "train.epochs=3", "model.depth" of "+model.depth=2"."""
    return [str(override.key_or_group) for override in OverridesParser.create().parse_overrides(list(overrides))]


def print_notices() -> None:
    """Print each notice as one line, from the main process only. Other warnings stay as they are."""
    show = warnings.showwarning

    def show_notice(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if not issubclass(category, Notice):
            show(message, category, *rest, **more)
        elif is_main():
            print(f"note: {without_credentials(str(message))}", file=sys.stderr)

    warnings.showwarning = show_notice
    warnings.simplefilter("always", Notice)


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an unexpected error as Python does, but without passwords and tokens in addresses."""
    print(without_credentials("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def is_main() -> bool:
    """Whether this process prints: the one of rank 0, if torchrun has started it."""
    return int(os.environ.get("RANK", 0)) == 0


def stop(message: str, status: int, *, alone: bool = False) -> NoReturn:
    """End the process. All processes meet the same error and the main one prints it, unless this one is alone."""
    if is_main() or alone:
        print(f"error: {without_credentials(message)}", file=sys.stderr)
    sys.exit(status)


def nameless_choice(arguments: Sequence[str], keys: Sequence[str]) -> str:
    """The argument that gives a group something else than a name, as model=null does. Hydra does not tell which."""
    nameless = re.compile(r"\+?(\w+)=(null|true|false|[\d.]+|[{].*)", re.IGNORECASE)
    groups = {key.split(".")[0] for key in keys if "." in key} | {"recipe"}
    found = [argument for argument in arguments if (match := nameless.fullmatch(argument)) and match[1] in groups]
    return found[0] if found else "a config group"


def explain(error: Exception, keys: Sequence[str]) -> str:
    """Hydra's message in one line, in the words of the other errors."""
    message = str(error).strip()
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        return unknown(name, group, error.options)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read ({message.splitlines()[0]}); quote a value that holds , = or spaces"
    named = re.search(r"Could not override '([^']+)'", message)
    if isinstance(error, ConfigCompositionException) and named:
        key = str(getattr(error.__cause__, "full_key", None) or "")
        key = key if key.startswith(named[1]) else named[1]
        section, _, _ = key.rpartition(".")
        if key in keys:
            group = key.split(".")[0]
            return f"{key}: not a key of what is chosen for {group}; choose with {group}="
        if section in keys and not any(known.startswith(f"{section}.") for known in keys):
            return f"{key}: unknown key; +{key}=… adds it"
        return f"{key}: unknown key{did_you_mean(key, keys)}"
    return " ".join(message.split())
