"""scripts/benchmark_kernels.py prints a row for each operation and mode, and leaves the model as it was."""

from collections.abc import Callable

import pytest

from ..conftest import Result

SMALL = ("--model=xcit_n12", "--image-size=32", "--batch-size=2", "--rounds=1")


def test_rows_for_the_table(command: Callable[..., Result]) -> None:
    done = command("scripts/benchmark_kernels.py", *SMALL, "--operations=product,gelu,class_attention")
    assert done.status == 0, done.stderr
    rows = [line.split(" | ")[:2] for line in done.stdout.splitlines() if line.startswith("| `")]
    both = [[f"| `{name}`", mode] for name in ("product", "class_attention") for mode in ("training", "inference")]
    assert rows == [*both[:2], ["| `gelu`", "training"], *both[2:]]


@pytest.mark.parametrize("argument", ["--operations=gelo", "--rounds=0"])
def test_bad_arguments_are_refused(command: Callable[..., Result], argument: str) -> None:
    done = command("scripts/benchmark_kernels.py", argument)
    assert done.status == 2 and argument in done.stderr
