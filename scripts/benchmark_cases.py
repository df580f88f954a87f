"""The cases of scripts/benchmark.py, with their models and images, and the rows of its table."""

import re
from dataclasses import dataclass
from statistics import median
from typing import Any

import timm
import torch
from rich.table import Table
from torch import Tensor, nn

import xcit
from xcit.errors import InputError, choose
from xcit.tables import show_table
from xcit.weights.published import long_name


@dataclass(frozen=True)
class Case:
    model: str
    patch_size: int
    image_size: int
    batch_size: int

    @classmethod
    def read(cls, text: str) -> "Case":
        """Read s12/16@224x8: the S12 at patch 16, at 224 pixels, in batches of 8."""
        found = re.fullmatch(r"(\w+)/(\d+)@(\d+)x(\d+)", text)
        if not found:
            raise InputError(f"--cases={text}: must be MODEL/PATCH@PIXELSxBATCH, as s12/16@224x8")
        model = f"xcit_{found[1]}"
        choose({name: name for name in xcit.list_models()}, model, "--cases")
        case = cls(model, *map(int, found.groups()[1:]))
        if case.patch_size not in (8, 16) or case.batch_size < 1 or case.image_size < case.patch_size:
            raise InputError(f"--cases={text}: must have a patch of 8 or 16, at least one image, of at least one patch")
        return case

    def __str__(self) -> str:
        return f"{self.model.removeprefix('xcit_')}/{self.patch_size}@{self.image_size}x{self.batch_size}"

    def models(self, device: torch.device) -> dict[str, nn.Module]:
        """Both models, with the same weights."""
        torch.manual_seed(0)
        theirs = timm.create_model(f"{long_name(self.model, self.patch_size)}_224")
        ours = xcit.create_model(self.model, patch_size=self.patch_size)
        xcit.load_weights(ours, theirs.state_dict())
        models = {"ours": ours.to(device), "timm": theirs.to(device)}
        if device.type == "cuda":
            theirs.to(memory_format=torch.channels_last)
        return models

    def images(self, device: torch.device) -> Tensor:
        images = torch.randn(self.batch_size, 3, self.image_size, self.image_size, device=device)
        return images.contiguous(memory_format=torch.channels_last) if device.type == "cuda" else images


@dataclass(frozen=True)
class Row:
    model: str
    image_size: int
    batch_size: int
    mode: str
    figure: str
    ours: float
    timm: float
    ratio: float
    lowest: float
    highest: float
    share: float | None = None
    of_eager: float | None = None
    """Of an export: its speed by that of our eager model, the median of the rounds."""


def row(case: Case, mode: str, figure: str, ours: list[float], theirs: list[float], share: float | None = None) -> Row:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    medians = median(ours), median(theirs)
    spread = median(ratios), min(ratios), max(ratios)
    model = f"{case.model}_p{case.patch_size}"
    return Row(model, case.image_size, case.batch_size, mode, figure, *medians, *spread, share)


def print_table(rows: list[Row]) -> None:
    table = Table()
    for column in ("model", "pixels", "batch", "figure", "ours", "timm", "ratio", "range", "share", "of eager"):
        table.add_column(column, justify="left" if column in ("model", "figure") else "right", overflow="fold")
    for r in rows:
        numbers: tuple[Any, ...] = (f"{r.ours:,.1f}", f"{r.timm:,.1f}", f"{r.ratio:.2f}")
        share = "" if r.share is None else f"{100 * r.share:.0f} %"
        spread = f"{r.lowest:.2f}–{r.highest:.2f}"
        of_eager = "" if r.of_eager is None else f"{r.of_eager:.2f}"
        table.add_row(r.model, str(r.image_size), str(r.batch_size), r.figure, *numbers, spread, share, of_eager)
    show_table(table)
