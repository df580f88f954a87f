"""What a command says at its start: what it has understood, and what a resume or a finished run makes of changes."""

import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn

from .credentials import without_credentials
from .device import name_of
from .engine import distributed
from .engine.length import Length
from .engine.optimizer import peak_lr
from .errors import print_note
from .preprocessing import Preprocessing

Fact = tuple[str, str]
"""A label, as "device", and its text."""


def say(facts: Sequence[Fact], notes: Sequence[str] = ()) -> None:
    """Print aligned lines on stderr, and a line for each note. Only the main process prints."""
    if distributed.is_main():
        width = max((len(label) for label, _ in facts), default=0)
        for label, text in facts:
            print(f"{label:<{width}}  {without_credentials(text)}", file=sys.stderr, flush=True)
        for note in notes:
            print_note(note)


def device(device: torch.device, precision: str) -> Fact:
    """As ("device", "2 × NVIDIA H200, 2 processes, bf16")."""
    number = distributed.world_size()
    processes = f"{number} {'process' if number == 1 else 'processes'}"
    if gpu := name_of(device):
        gpus = f"{number} × " if number > 1 else ""
        return "device", f"{gpus}{gpu}, {processes}, {precision}"
    threads = torch.get_num_threads()
    each = " each" if number > 1 else ""
    return "device", f"CPU ({cpu_name()}), {processes} of {threads} thread{'s' * (threads > 1)}{each}, {precision}"


def cpu_name() -> str:
    """The name of the CPU, as Linux has it; elsewhere its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def model(
    name: str, network: nn.Module, patch_size: int, preprocessing: Preprocessing, shorter_sides: Sequence[int]
) -> Fact:
    """As ("model", "xcit_n12, 3.05 M parameters, patches of 8 pixels, images of 32 pixels").

    Args:
        patch_size: In pixels; 1 if the model has none.
        preprocessing: Its proportions are those of the images; their shorter sides are in pixels.
    """
    parameters = list(network.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    parts = [name, f"{total / 1e6:.2f} M parameters"]
    if trained < total:
        parts.append(f"{trained / 1e6:.2f} M of them trained")
    if patch_size > 1:
        parts.append(f"patches of {patch_size} pixels")
    sizes = [preprocessing.at(side).size for side in shorter_sides]
    if all(H == W for H, W in sizes):
        return "model", ", ".join([*parts, f"images of {listed(shorter_sides)} pixels"])
    both = listed([f"{H} × {W}" for H, W in sizes])
    return "model", ", ".join([*parts, f"images of {both} pixels (height × width)"])


def images(preprocessing: Preprocessing) -> Iterator[Fact]:
    """As ("images", "4 channels, …"); nothing for square RGB images of 8 bits that are cropped."""
    H, W = preprocessing.size
    parts = []
    if preprocessing.resize != "shortest" and (H != W or preprocessing.resize != "crop"):
        parts.append(f"{H} × {W} pixels (height × width) by {preprocessing.resize}")
    if not preprocessing.is_rgb_of_8_bits:
        low, high = preprocessing.bounds
        parts += [counted(preprocessing.channels, "channel"), f"values from {low:g} to {high:g}"]
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            parts.append(f"{name} {listed([f'{value:.4g}' for value in values])}")
    if parts:
        yield "images", ", ".join(parts)


def training(length: Length, updates_per_epoch: int, global_batch_size: int, lr: float) -> Fact:
    """As ("training", "16 epochs of 22 updates, 64 images per update, learning rate 0.00025").

    lr: for a batch of 512, as `optim.lr`.
    """
    if length.updates:
        duration = f"{counted(length.updates, 'update')} (an epoch has {updates_per_epoch:,})"
    else:
        duration = f"{counted(length.epochs or 0, 'epoch')} of {counted(updates_per_epoch, 'update')}"
    processes = distributed.world_size()
    shares = f" ({processes} processes × {global_batch_size // processes:,})" if processes > 1 else ""
    return "training", (
        f"{duration}, {global_batch_size:,} images per update{shares}, "
        f"learning rate {peak_lr(lr, global_batch_size):.3g} (optim.lr={lr:g} × {global_batch_size} / 512)"
    )


def counted(number: int, noun: str) -> str:
    """As "1 update" or "1,000 updates"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def evaluation(resolutions: Sequence[int], crop_ratio: float) -> Fact:
    """The evaluation, or that at the end of training: as ("evaluation", "at 24, 28 and 32 pixels")."""
    cropped = f", crop ratio {crop_ratio:g}" if crop_ratio != 1 else ""
    return "evaluation", f"at {listed(resolutions)} pixels{cropped}"


def start(pretrained: str | bool | None, init_from: str | None, resumed: Path | None) -> Fact:
    """What a run starts from: the checkpoint that it resumes, another run, weights, or nothing."""
    if resumed:
        return "start", f"resumed from {resumed}"
    sources = {"init_from": init_from, "pretrained": pretrained}
    return "start", next((f"from {key}={source}" for key, source in sources.items() if source), "from scratch")


def listed(numbers: Sequence[object]) -> str:
    """As "24, 28 and 32"."""
    *others, last = map(str, numbers)
    return f"{', '.join(others)} and {last}" if others else last


def announce_resume(checkpoint: Path, epochs: int, seen: int, changed: Sequence[str]) -> None:
    """Print where the run continues, and the settings that changed since the checkpoint."""
    if distributed.is_main():
        notice = f"; changed since: {', '.join(changed)}" if changed else ""
        within = f" and {seen:,} images of the next" if seen else ""
        print(f"resuming {checkpoint} after epoch {epochs}{within}{notice}", file=sys.stderr)


def announce_end(folder: Path, changed: Sequence[str]) -> None:
    """Print that the run is finished, and which settings have no effect therefore."""
    if distributed.is_main():
        without = f"; without effect: {', '.join(changed)}" if changed else ""
        patience = "or a larger train.patience if that ended it"
        print_note(
            f"{folder}: its run is finished; a larger train.epochs continues it in a new folder, {patience}{without}"
        )


def changes(before: BaseModel, now: BaseModel) -> list[str]:
    """The settings that differ between two configurations, as "optim.lr 0.1 → 0.2"; not what names the run."""
    found = differences(without_credentials(before.model_dump()), without_credentials(now.model_dump()))
    return [f"{key} {old} → {new}" for key, old, new in found if key not in ("resume", "run_dir")]


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) wherever two nested configurations differ."""
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new
