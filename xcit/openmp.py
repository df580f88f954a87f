"""How long the idle threads of OpenMP spin, that is, keep a core busy while they wait for work."""

from collections.abc import MutableMapping

SPIN_COUNT = 10_000
"""Some tenths of a millisecond. docs/speed.md has the measurements."""


def limit_spinning(environment: MutableMapping[str, str]) -> None:
    """Set GOMP_SPINCOUNT, unless the user has chosen how threads wait. Commands call it before they import torch.

    GNU's OpenMP, with which PyTorch is built for Linux, reads the variable when it is loaded. By default its threads
    spin 300,000 times, for at least three milliseconds. If another process has one of the cores, the others then spend
    most of their time on waiting for the thread that was interrupted. A thread that sleeps at once takes too long to
    wake up for the short operations of small models.
    """
    if not environment.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        environment["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
