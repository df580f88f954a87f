"""Whether the Triton kernels, as this machine's Triton compiles them for this GPU, compute what torch's kernels do.

Compilers have faults: one that Triton 3.6 and 3.8 share made gradients wrong in silence. So before a GPU's first use
small batches go there and back by both routes. Until then torch's kernels run.
"""

import importlib.metadata
import threading
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .cross_covariance import attend
from .depthwise import gelu_batchnorm_depthwise, norm_depthwise
from .dispatch import HAS_TRITON, Kernels, forced, is_ordinary, kind, possible, verdicts
from .linear import gelu_linear, norm_linear
from .local_patch import add_folded_local_patch

HEADS = 2
SHAPES = ((32, (16, 16)), (40, (18, 17)))
"""A head's channels and the grid: of whole tiles, and of none."""
TOLERANCES = {torch.float32: 0.05, torch.bfloat16: 0.1}
"""Of an output or a gradient, relative to its norm: what rounding explains, and TF32 in torch's convolutions."""

_one_at_a_time = threading.Lock()


def try_out(images: Tensor) -> None:
    """Finds out whether the kernels for these images' GPU are to be Triton's, once a process.

    Not where they could not run anyway: on fp16, traced, within torch.func, while something is compiled or captured.
    """
    device = images.device
    if device.type != "cuda" or not HAS_TRITON or device.index in verdicts or kind() != "auto":
        return
    if torch.compiler.is_compiling() or not (is_ordinary(images) and possible(images)):
        return
    if torch.cuda.is_current_stream_capturing():
        return
    with _one_at_a_time:
        if device.index not in verdicts:
            verdicts[device.index] = agrees(device)


def agrees(device: torch.device) -> bool:
    """Compares both routes in fp32 and bf16. Where they differ, or Triton cannot run, a warning says so."""
    complaint = None
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.default_generator.manual_seed(0)  # torch.manual_seed would set that of the GPUs, too
        for d, grid in SHAPES:
            parts = Parts(d, grid).to(device, torch.float32)
            x = torch.randn(2, grid[0] * grid[1], HEADS * d, dtype=torch.float32).to(device)
            complaint = complaint or next(complaints(parts, x), None)
    if complaint:
        versions = ", ".join(f"{name} {version_of(name)}" for name in ("torch", "triton"))
        warnings.warn(f"Triton's kernels on {device}: {complaint}; torch's run instead ({versions})", stacklevel=2)
    return complaint is None


class Parts(nn.Module):
    """What a layer has."""

    def __init__(self, d: int, grid: tuple[int, int]) -> None:
        super().__init__()
        dim, self.grid = HEADS * d, grid
        self.norm, self.other_norm, self.bn = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.BatchNorm2d(dim)
        self.still_bn = nn.BatchNorm2d(dim).eval()  # as several processes have theirs: none that the kernels know
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


def complaints(parts: Parts, x: Tensor) -> Iterator[str]:
    for dtype, tolerance in TOLERANCES.items():
        with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            try:
                by_torch, by_triton = (outcome(parts, x, kernels) for kernels in ("fast", "triton"))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # what a compiler may raise is its own affair
                yield f"they do not run ({type(error).__name__}: {error}".splitlines()[0] + ")"
                return
        for name, expected in by_torch.items():
            distance = float((by_triton[name] - expected).norm() / expected.norm())
            if not distance < tolerance:
                yield f"{name} is off by {distance:.1%} in {str(dtype).removeprefix('torch.')}"


def outcome(parts: Parts, x: Tensor, kernels: Kernels) -> dict[str, Tensor]:
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
