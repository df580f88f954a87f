"""The first moment of train.py, eval.py and the scripts that use a model."""

from collections.abc import Callable

from .signals import exit_at_signals


def answer(file: str, text: str | None = None) -> None:
    """Answer --help and mistakes on the command line, as `xcit.command.answer` does. Signals end the process at once.

    file: the entry point, with conf/ beside it. text: the help of a script that takes the options of train.py.
    """
    exit_at_signals()
    from .command import answer as answer_typed  # here, because it imports Hydra, which takes half a second

    answer_typed(file, text)


def answer_options(parse: Callable[[], object]) -> None:
    """The same for a script with options of its own. parse: reads them, prints the help, raises an InputError."""
    exit_at_signals()
    from .command import answer_parsed

    answer_parsed(parse)
