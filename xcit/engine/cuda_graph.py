"""train.cuda_graph: the forward and the backward pass as one CUDA graph, which the processor launches in one call.

A training step has more than a thousand kernels. Where the GPU is faster than the processor launches them, it waits. A
CUDA graph records the kernels once and replays them. Clipping, the optimizer and the EMA stay outside: they are a few
dozen launches, which the processor makes while the GPU still computes the gradients. So schedules, hooks, fp16 scaling
and any optimizer work, and the results are those without a graph.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from ..errors import InputError
from . import distributed
from .task import Losses, Task

T = TypeVar("T")

WARM_UP = 3
"""Updates of each shape without a graph. They compile kernels, and libraries allocate their memory."""


def require_cuda_graph(wanted: bool, device: torch.device, name: str, task: type[Task]) -> None:
    """Refuse train.cuda_graph=true where it cannot work. name: the task's.

    Raises:
        InputError: there is no GPU, there are several processes, or the task's steps are not always the same.
    """
    reason = None
    if device.type != "cuda":
        reason = f"needs a CUDA GPU, and this run is on the {device.type}"
    elif distributed.world_size() > 1:
        reason = f"is for one process, and this run has {distributed.world_size()}"
    elif not task.is_capturable:
        reason = f"task={name} does not run the same operations in each update"
    if wanted and reason:
        raise InputError(f"train.cuda_graph=true: {reason}; set train.cuda_graph=false")


class CudaGraphs:
    """Runs and records functions on a stream of its own. All graphs share one pool of memory."""

    def __init__(self) -> None:
        self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """A context on the stream. Autograd records where gradients are accumulated, so a capture needs the same."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream().wait_stream(self.stream)

    def record(self, function: Callable[[], T]) -> tuple[T, Callable[[], object]]:
        """The function's result, whose tensors have no values yet, and what computes them."""
        graph = torch.cuda.CUDAGraph()
        # cuBLAS writes into a workspace that it keeps between calls. The graph gets one in its own memory, as others
        # may free the kept one: torch.compile(mode="reduce-overhead") does.
        torch._C._cuda_clearCublasWorkspaces()
        # "thread_local": the loader's thread may allocate pinned memory meanwhile.
        with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
            result = function()
        torch._C._cuda_clearCublasWorkspaces()
        return result, graph.replay


class Captured(NamedTuple):
    """What a graph reads and writes: the same memory in each replay."""

    batch: Any
    losses: Losses
    gradients: list[tuple[nn.Parameter, Tensor]]
    replay: Callable[[], object]


class CapturedPass:
    """Computes what `run` computes, by a CUDA graph for each shape of the batch.

    A replay reads the seed of the generator again, so a seed that is set before the call has its usual effect.

    Args:
        run: computes the losses of a batch, and the gradients of the module's parameters, which have none before. It
            must run the same operations for each batch of a shape, and must not wait for the GPU.
        module: what is trained.
        graphs: where functions run and are recorded.
    """

    def __init__(self, run: Callable[[Any], Losses], module: nn.Module, graphs: CudaGraphs | None = None) -> None:
        self.run, self.module, self.graphs = run, module, graphs or CudaGraphs()
        self.captured: dict[Hashable, Captured] = {}
        self.warmed_up: Counter[Hashable] = Counter()

    def __call__(self, batch: Any) -> Losses:
        """The losses of a batch, a named tuple of tensors. They and the gradients are valid until the next call."""
        shape = tuple(tensor.shape for tensor in batch)
        if shape not in self.captured and self.warmed_up[shape] < WARM_UP:
            self.warmed_up[shape] += 1
            with self.graphs.warming_up():
                return self.run(batch)
        if shape not in self.captured:
            self.captured[shape] = self.capture(batch)
        captured = self.captured[shape]
        for static, tensor in zip(captured.batch, batch, strict=True):
            static.copy_(tensor)
        captured.replay()
        for parameter, gradient in captured.gradients:  # the optimizer has removed them
            parameter.grad = gradient
        increment_version(self.module.buffers())  # PyTorch does not see that a replay writes BatchNorm's statistics
        return captured.losses

    def capture(self, batch: Any) -> Captured:
        static = type(batch)._make(tensor.clone() for tensor in batch)

        def run() -> tuple[Losses, list[tuple[nn.Parameter, Tensor]]]:
            losses = self.run(static)
            return losses, [(p, p.grad) for p in self.module.parameters() if p.grad is not None]

        (losses, gradients), replay = self.graphs.record(run)
        return Captured(static, losses, gradients, replay)
