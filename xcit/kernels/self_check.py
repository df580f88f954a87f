"""Checks that the Triton kernels, as this machine compiles them for its GPU, compute the same as PyTorch's operations.

Compilers have faults: one in Triton 3.6 and 3.8 made gradients wrong without an error. So when a GPU is used for the
first time, two small batches run forward and backward with both. Until then PyTorch's operations run.
"""

import importlib.metadata
import threading
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .cross_covariance import attend
from .depthwise import gelu_batchnorm_depthwise, norm_depthwise
from .dispatch import Kernels, awaits_self_check, forced, triton_is_correct
from .linear import gelu_linear, norm_linear
from .local_patch import add_folded_local_patch

HEADS = 2
SHAPES = ((32, (16, 16)), (40, (18, 17)))
"""A head's channels and the grid: first multiples of the tiles, then not."""
TOLERANCES = {torch.float32: 0.05, torch.bfloat16: 0.1}
"""The allowed error relative to the norm of an output or a gradient: rounding, and TF32 in torch's convolutions."""

_one_at_a_time = threading.Lock()


def check_triton_kernels(images: Tensor) -> None:
    """Check the kernels on the images' GPU, once in a process.

    Does nothing if Triton cannot run here: in fp16, in torch.func, in a trace, while code is compiled or captured.
    """
    if not awaits_self_check(images):
        return
    with _one_at_a_time:
        device = images.device
        if device.index not in triton_is_correct:
            triton_is_correct[device.index] = agrees(device)


def agrees(device: torch.device) -> bool:
    """Whether the kernels and PyTorch's operations agree in fp32 and bf16. Warns if not, or if Triton cannot run."""
    problem = None
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed the GPUs, too
        for d, grid in SHAPES:
            parts = Parts(d, grid).to(device, torch.float32)
            x = torch.randn(2, grid[0] * grid[1], HEADS * d, dtype=torch.float32).to(device)
            problem = problem or next(find_problems(parts, x), None)
    if problem:
        versions = ", ".join(f"{name} {version_of(name)}" for name in ("torch", "triton"))
        message = f"Triton kernels failed the self-check on {device} ({problem}); using PyTorch operations instead"
        warnings.warn(f"{message} ({versions})", stacklevel=2)
    return problem is None


class Parts(nn.Module):
    """A module with a layer's parameters that calls every Triton kernel."""

    def __init__(self, d: int, grid: tuple[int, int]) -> None:
        super().__init__()
        dim, self.grid = HEADS * d, grid
        self.norm, self.other_norm, self.bn = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.BatchNorm2d(dim)
        self.still_bn = nn.BatchNorm2d(dim).eval()  # called as a module, like a SyncBatchNorm
        self.qkv, self.fc1, self.fc2 = nn.Linear(dim, 3 * dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.conv1, self.conv2 = (nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim) for _ in range(2))
        self.temperature, self.scale = nn.Parameter(torch.ones(HEADS, 1, 1)), nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x, qkv = norm_linear(x, self.norm, self.qkv)
        x = x + attend(qkv, self.temperature)
        convolved = norm_depthwise(x, self.norm, self.conv1, self.grid)
        for bn in (self.bn, self.still_bn):
            x = x + gelu_batchnorm_depthwise(convolved, bn, self.conv2, self.scale, self.grid)
        x, hidden = norm_linear(x, self.other_norm, self.fc1)
        return x + gelu_linear(hidden, self.fc2, self.scale)

    def folded(self, x: Tensor) -> Tensor:
        assert self.conv1.bias is not None and self.conv2.bias is not None
        first, second = (self.conv1.weight, self.conv1.bias), (self.conv2.weight, self.conv2.bias)
        return add_folded_local_patch(x, x, self.norm, first, self.scale, self.scale, second, self.grid)


def find_problems(parts: Parts, x: Tensor) -> Iterator[str]:
    for dtype, tolerance in TOLERANCES.items():
        with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            try:
                torchs, tritons = (compute(parts, x, kernels) for kernels in ("fast", "triton"))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a compiler may raise anything
                yield f"{type(error).__name__}: {error}".splitlines()[0]
                return
        for name, expected in torchs.items():
            distance = float((tritons[name] - expected).norm() / expected.norm())
            if not distance < tolerance:
                yield f"{name} is off by {distance:.1%} in {str(dtype).removeprefix('torch.')}"


def compute(parts: Parts, x: Tensor, kernels: Kernels) -> dict[str, Tensor]:
    """The outputs and the gradients, by name."""
    x = x.clone().requires_grad_()
    parameters = dict(parts.named_parameters())
    with forced(kernels):
        y = parts(x)
        gradients = torch.autograd.grad(y.square().sum(), [x, *parameters.values()])
        with torch.no_grad():
            folded = parts.folded(x)
    return {"output": y.detach(), "folded": folded} | dict(zip(["input", *parameters], gradients, strict=True))


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"
