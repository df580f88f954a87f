"""Measures steps in turns, the tensors that a step saves, and the machine's best rate, for scripts/benchmark.py."""

import gc
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from xcit.kernels.matmul import product

SECONDS = 0.5
"""Duration of a turn. It is long enough that reading the clock does not matter."""
Step = Callable[[], object]
Rates = dict[torch.dtype, float]  # dtype → the machine's best rate for a matrix product, in operations per second


def operations_of(model: nn.Module, images: Tensor, training: bool) -> float:
    """Additions and multiplications of a step. The backward pass counts twice as much as the forward pass."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(images)
    return counter.get_total_flops() * (3 if training else 1)


def in_turns(steps: dict[str, Step], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Steps per second of each side in each round. In a round each side has one turn."""
    # Warm up, then choose how many steps fill a turn.
    for step in steps.values():
        rate(step, 2, device)
    repeats = {side: max(1, round(SECONDS * rate(step, 1, device))) for side, step in steps.items()}
    found: dict[str, list[float]] = {side: [] for side in steps}
    for _ in range(rounds):
        for side, step in steps.items():
            if device.type == "cuda":
                # If both sides do not fit into the memory, a side's first step takes it from the other one.
                rate(step, 1, device)
            found[side].append(rate(step, repeats[side], device))
    return found


def rate(step: Step, repeats: int, device: torch.device) -> float:
    """Steps per second over so many repeats."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return repeats / (time.perf_counter() - started)


def kept_by(model: nn.Module, images: Tensor) -> float:
    """Megabytes of the tensors that a forward pass in training keeps alive.

    They are what autograd saves, and what else is alive afterwards: checkpointing keeps its inputs outside autograd.
    """
    kept: dict[int, int] = {}
    before = {tensor.untyped_storage().data_ptr() for tensor in alive()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in before:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.train()(images)
    for tensor in alive():
        if tensor is not output:
            keep(tensor)
    return sum(kept.values()) / 1e6


def alive() -> list[Tensor]:
    """All tensors in the process that own memory."""
    gc.collect()
    return [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor) and has_memory(thing)]


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor has an address. The compiler's fake tensors and oneDNN's packed weights raise instead."""
    try:
        return tensor.untyped_storage().data_ptr() != 0
    except (RuntimeError, NotImplementedError):
        return False


def measure_machine(device: torch.device, dtypes: set[torch.dtype]) -> Rates:
    """Measure the machine's best rate for the matrix product of S12's feed-forward network, in each dtype."""
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}, timm {timm.__version__}")
    best: Rates = {}
    images = 8 if device.type == "cpu" else 512
    for dtype in sorted(dtypes, key=lambda dtype: -dtype.itemsize):
        tokens = torch.randn(images, 196, 384, device=device, dtype=dtype)
        with torch.inference_mode():
            found = in_turns(routes(tokens, 1536), 5, device)
        rates = {name: 2 * tokens.numel() * 1536 * statistics.median(each) for name, each in found.items()}
        speeds = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in rates.items())
        print(f"{str(dtype).removeprefix('torch.')}: {speeds}")
        best[dtype] = max(rates.values())
    return best


def routes(tokens: Tensor, outputs: int) -> dict[str, Step]:
    """Three implementations of the same matrix product."""
    where: dict[str, Any] = {"device": tokens.device, "dtype": tokens.dtype}
    linear = nn.Linear(tokens.shape[-1], outputs, **where)
    conv = nn.Conv2d(tokens.shape[-1], outputs, kernel_size=1, **where)
    image = tokens.mT.unflatten(-1, (14, 14))  # a view of the same memory, as a channels-last map
    return {
        "linear": lambda: linear(tokens),
        "1×1 convolution": lambda: conv(image),
        "ours": lambda: product(tokens, linear.weight, linear.bias),
    }
