"""The first moment of train.py and eval.py."""

from .signals import exit_at_signals


def answer(file: str) -> None:
    """Answer --help and mistakes on the command line, as `xcit.command.answer` does. Signals end the process at once.

    file: the entry point, with conf/ beside it.
    """
    exit_at_signals()
    from .command import answer as answer_typed  # here, because it imports Hydra, which takes half a second

    answer_typed(file)
