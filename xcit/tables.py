"""Prints tables."""

from rich.console import Console
from rich.table import Table

WIDE = 1_000
"""Characters in a line of a file or a pipe. There rich would cut columns to fit into 80."""


def show_table(table: Table) -> None:
    """Print a table: as wide as the terminal at most, and uncut where there is no terminal."""
    console = Console()
    if not console.is_terminal:
        console.width = WIDE
    console.print(table)
