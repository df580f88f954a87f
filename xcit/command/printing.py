"""How a command prints: one line for a notice or an error, from the main process only, without passwords and tokens."""

import os
import sys
import traceback
import warnings
from types import TracebackType
from typing import Any, NoReturn

from ..credentials import without_credentials
from ..errors import Notice


def print_notices() -> None:
    """Print each notice as one line and once, from the main process only. Other warnings stay as they are."""
    show = warnings.showwarning
    printed: set[str] = set()

    def show_notice(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if not issubclass(category, Notice):
            show(message, category, *rest, **more)
        elif is_main() and str(message) not in printed:
            printed.add(str(message))
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
    print_error(message, alone=alone)
    sys.exit(status)


def print_error(message: str, *, alone: bool = False) -> None:
    if is_main() or alone:
        print(f"error: {without_credentials(message)}", file=sys.stderr, flush=True)
