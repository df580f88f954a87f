"""How a command ends: 0, or one clear line and 2 for input that cannot be used, 1 for anything else."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from .engine import distributed
from .errors import InputError, TrainingError, did_you_mean


def run(main: Callable[[], Any], keys: Sequence[str], input_errors: tuple[type[Exception], ...] = ()) -> None:
    """Call a Hydra main and turn what it raises into the exit status.

    Args:
        keys: every key of the configuration, for the nearest to a misspelt one.
        input_errors: further exceptions that mean what InputError means.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra is to raise, not to print and exit with 1
    try:
        main()
    except (InputError, *input_errors) as error:
        stop(str(error), 2)
    except (HydraException, OmegaConfBaseException) as error:
        stop(explain(error, keys), 2)
    except TrainingError as error:
        stop(str(error), 1)
    except KeyboardInterrupt:
        stop("interrupted; resume= continues from the last finished epoch", 130)


def stop(message: str, status: int) -> None:
    if distributed.is_main():
        print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def explain(error: Exception, keys: Sequence[str]) -> str:
    """What Hydra has to say, in one line and in the words of the other errors."""
    message = str(error).strip()
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        return f"{group}={name}: unknown{did_you_mean(name, error.options)} (one of {', '.join(error.options)})"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read ({message.splitlines()[0]}); quote a value that holds , = or spaces"
    if isinstance(error, ConfigCompositionException):
        named = re.search(r"Could not (?:override|append to config\. An item is already at|delete from config\.) '?([^'\s]+)'?", message)
        if named:
            key = named[1].rstrip(".")
            if key in keys:
                return f"{key}: belongs to another choice of {key.split('.')[0]}= than the one made"
            return f"{key}: unknown key{did_you_mean(key, keys)}"
    return " ".join(message.split())
