"""Tables, exponents and the plot of scripts/benchmark_dense.py."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from rich.table import Table

from scripts.dense_cases import Case, Cost
from xcit.tables import show_table

Found = dict[Case, Cost]
QUANTITIES = {"time": "seconds", "CPU time": "cpu_seconds", "memory": "peak_mb"}


def same(one: Case, other: Case) -> bool:
    """Whether they differ at most in the size of the image."""
    names = ("part", "model", "patch_size", "mode")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def value(cost: Cost, what: str) -> float:
    """The median of the runs, or the peak."""
    return cost.peak_mb or 0.0 if what == "peak_mb" else statistics.median(getattr(cost, what))


def exponent(cases: Sequence[Case], found: Found, what: str) -> float:
    """The slope of log(cost) over log(pixels), by least squares."""
    x = [math.log(case.pixels) for case in cases]
    y = [math.log(max(value(found[case], what), 1e-6)) for case in cases]
    return statistics.linear_regression(x, y).slope


def cells(cost: Cost, limit_gb: float) -> tuple[str, ...]:
    """Time, its range, CPU time and memory."""
    if not cost.seconds or cost.peak_mb is None:
        return f"does not fit in {limit_gb:g} GB", "", "", ""
    spread = f"{min(cost.seconds):.2f}-{max(cost.seconds):.2f}" if len(cost.seconds) > 1 else "one run"
    seconds, cpu_seconds = value(cost, "seconds"), value(cost, "cpu_seconds")
    return f"{seconds:.2f} s", spread, f"{cpu_seconds:.2f} s", f"{cost.peak_mb:,.0f} MB"


def print_table(figure: str, found: Found, limit_gb: float) -> None:
    table = Table(title=figure)
    for column in ("model", "part", "mode", "pixels", "time", "range", "CPU time", "memory"):
        table.add_column(column, justify="right" if column in ("pixels", "time", "CPU time", "memory") else "left")
    for case, cost in found.items():
        size = f"{case.width} x {case.height}"
        table.add_row(f"{case.model}/{case.patch_size}", case.part, case.mode, size, *cells(cost, limit_gb))
    show_table(table)


def curves(found: Found) -> list[list[Case]]:
    """The cases that fit, by what they measure, each from the smallest image to the largest."""
    fitting = [case for case in found if found[case].seconds]
    firsts = [case for i, case in enumerate(fitting) if not any(same(case, c) for c in fitting[:i])]
    return [[case for case in fitting if same(case, first)] for first in firsts]


def print_exponents(found: Found) -> None:
    for cases in curves(found):
        if len(cases) > 1:
            first, last = cases[0], cases[-1]
            slopes = ", ".join(f"{name} {exponent(cases, found, what):.2f}" for name, what in QUANTITIES.items())
            name = f"{first.model}/{first.patch_size} {first.part}"
            print(f"{name}, {first.width} to {last.width} pixels: exponents: {slopes}")


def draw(found: Found, path: Path) -> None:
    """Time and memory over the number of pixels, with logarithmic axes."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # here, after the choice of a backend without a window

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axis, (name, what) in zip(axes, (("time", "seconds"), ("memory", "peak_mb")), strict=True):
        for cases in curves(found):
            first = cases[0]
            style = "--" if first.model.startswith("vit") else "-"
            label = f"{first.model.split('_patch')[0]}/{first.patch_size} {first.part}"
            if len(cases) > 1:
                label += f" ({exponent(cases, found, what):.2f})"
            axis.plot(
                [c.pixels / 1e6 for c in cases], [value(found[c], what) for c in cases], style, marker=".", label=label
            )
        axis.set(xscale="log", yscale="log", xlabel="megapixels", ylabel={"time": "seconds", "memory": "MB"}[name])
        axis.set_title(f"{name} (exponent)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
