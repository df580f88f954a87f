"""A table is whole where there is no terminal."""

import pytest
from rich.table import Table

from xcit.tables import show_table


def test_a_table_is_not_cut_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"a metric of a long name {number}" for number in range(9)]
    show_table(Table(*names))
    title = capsys.readouterr().out.splitlines()[1]
    assert all(name in title for name in names)
