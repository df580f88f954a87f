"""One measurement of scripts/benchmark_dense.py: a model, a task and an image, in a process of its own."""

import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import xcit
from xcit.engine.task import Target, Task
from xcit.evaluation.cost import peak_of_process, reset_peak_of_process
from xcit.models.dense.pyramid import FeaturePyramid
from xcit.models.fast.checkpointing import set_checkpointing
from xcit.models.fast.inference import ready_for_inference
from xcit.tasks.detect import Detect
from xcit.tasks.load import ready
from xcit.tasks.segment import Segment

WARM_UP_SIDE = 128
ENOUGH_SECONDS = 10
"""A case that took so long is not repeated."""
COCO = Target("boxes", classes=tuple(f"class {i}" for i in range(80)))
ADE20K = Target("mask", classes=tuple(f"class {i}" for i in range(150)))
PARTS = ("pyramid", "detect", "semantic_fpn", "upernet", "upernet_slide", "classify")
MODES = ("fp32", "bf16", "training", "checkpointed")


@dataclass(frozen=True)
class Case:
    part: str
    """One of PARTS: the pyramid alone, a task with its head, or the model as a classifier."""
    model: str
    patch_size: int
    height: int
    width: int
    mode: str = "fp32"
    """One of MODES: inference in a precision, or forward and backward of the pyramid in fp32."""

    @property
    def pixels(self) -> int:
        return self.height * self.width


@dataclass(frozen=True)
class Cost:
    """What a case took. Without runs it did not fit."""

    seconds: tuple[float, ...] = ()
    cpu_seconds: tuple[float, ...] = ()
    """Of all threads. Other work on the machine changes them less than the time."""
    peak_mb: float | None = None
    """Peak resident memory of the first run, beyond what the process had before: model and image."""


def measure(case: Case, rounds: int, limit_gb: float) -> Cost:
    """Run the case in a new process, because the memory that a process once had changes the peaks after it.

    The process may have `limit_gb` of address space. If it asks for more, or the system kills it, the case does not
    fit. Any other error of the process ends the benchmark.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(case, rounds, limit_gb, sender))
    process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:  # killed
        found = Cost()
    process.join()
    if isinstance(found, Exception):
        raise found
    return found


def run(case: Case, rounds: int, limit_gb: float, sender: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (int(limit_gb * 2**30), resource.RLIM_INFINITY))
    try:
        found: Cost | Exception = cost_here(case, rounds)
    except MemoryError:
        found = Cost()
    except Exception as error:
        found = Cost() if "allocate memory" in str(error) else RuntimeError(f"{case}: {error}")
    sender.send(found)


def cost_here(case: Case, rounds: int) -> Cost:
    torch.manual_seed(0)
    step = make_step(case)
    images = torch.randn(1, 3, case.height, case.width)
    step(torch.randn(1, 3, WARM_UP_SIDE, WARM_UP_SIDE))
    seconds: list[float] = []
    cpu_seconds: list[float] = []
    before = resident()
    reset_peak_of_process()
    while len(seconds) < rounds and sum(seconds) < ENOUGH_SECONDS:
        started, cpu_started = time.perf_counter(), time.process_time()
        step(images)
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu_started)
        if len(seconds) == 1:
            peak = (peak_of_process() - before) / 1e6
    return Cost(tuple(seconds), tuple(cpu_seconds), peak)


def make_step(case: Case) -> Callable[[Tensor], object]:
    """What is measured: a function of images, (1, 3, H, W)."""
    model = make_model(case)
    if case.mode in ("training", "checkpointed"):
        set_checkpointing(model, case.mode == "checkpointed")
        return training_step(FeaturePyramid(model).train())
    predict = predictor(case.part, model)

    def step(images: Tensor) -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=case.mode == "bf16"):
            predict(images)

    return step


def make_model(case: Case) -> nn.Module:
    if case.model in xcit.list_models():
        return xcit.create_model(case.model, patch_size=case.patch_size)
    return timm.create_model(case.model, patch_size=case.patch_size, dynamic_img_size=True)


def training_step(pyramid: nn.Module) -> Callable[[Tensor], object]:
    def step(images: Tensor) -> None:
        torch.stack([x.square().mean() for x in pyramid(images)]).sum().backward()
        pyramid.zero_grad()

    return step


def predictor(part: str, model: nn.Module) -> Callable[[Tensor], object]:
    """images → what a user gets, with the model folded as eval.py does."""
    if part == "classify":
        return ready_for_inference(model.eval())
    if part == "pyramid":
        pyramid = FeaturePyramid(model).eval()
        pyramid.model = ready_for_inference(pyramid.model)
        return pyramid
    if part == "detect":
        task: Any = Detect(model, COCO)
        # A bias makes all regions objects of one class, so that the masks of as many as allowed are computed.
        nn.init.constant_(task.heads.roi_heads.box_predictor.cls_score.bias[1:2], 5.0)
        return lambda images: folded(task).predict(images, tuple(images.shape[-2:]))
    inference: Any = "slide" if part.endswith("slide") else "whole"
    task = Segment(model, ADE20K, head=part.removesuffix("_slide"), inference=inference)  # type: ignore[arg-type]
    return lambda images: folded(task).predict_classes(images, tuple(images.shape[-2:]))


def folded(task: Task) -> Any:
    return ready(task) if task.training else task


def resident() -> int:
    """Bytes of memory that this process has now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
