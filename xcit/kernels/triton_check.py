"""Whether the Triton kernels, as this machine's Triton compiles them for this GPU, compute what torch's kernels do.

Compilers have faults: one that Triton 3.6 and 3.8 share made gradients wrong in silence. So before a GPU's first use a
small batch goes there and back by both routes. Until then torch's kernels run.
"""

import sys
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .choice import HAS_TRITON, Kernels, forced, verdicts
from .cross_covariance import attend
from .linear import gelu_linear, norm_linear
from .local_patch import gelu_batchnorm_depthwise, norm_depthwise

GRID = (18, 17)
HEADS, D = 2, 40
TOLERANCES = {torch.float32: 0.05, torch.bfloat16: 0.1}
"""Of the output or a gradient, relative to its norm: what rounding explains, and TF32 in torch's convolutions."""


class Parts(nn.Module):
    """What a layer has, of sizes that fill no tile."""

    def __init__(self) -> None:
        super().__init__()
        dim = HEADS * D
        self.norm, self.other_norm, self.bn = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.BatchNorm2d(dim)
        self.qkv, self.fc1, self.fc2 = nn.Linear(dim, 3 * dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.conv1, self.conv2 = (nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim) for _ in range(2))
        self.temperature, self.scale = nn.Parameter(torch.ones(HEADS, 1, 1)), nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + attend(norm_linear(x, self.norm, self.qkv), self.temperature)
        convolved = norm_depthwise(x, self.norm, self.conv1, GRID)
        x = x + gelu_batchnorm_depthwise(convolved, self.bn, self.conv2, self.scale, GRID)
        return x + gelu_linear(norm_linear(x, self.other_norm, self.fc1), self.fc2, self.scale)


def try_out(device: torch.device) -> None:
    """Finds out whether this GPU's kernels are to be Triton's, once a process, unless something is being compiled."""
    if device.type != "cuda" or not HAS_TRITON or torch.compiler.is_compiling() or device.index in verdicts:
        return
    verdicts[device.index] = agrees(device)


def agrees(device: torch.device) -> bool:
    """Compares both routes in fp32 and bf16. Where they differ, or Triton cannot run, a warning says so."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(0)
        parts, x = Parts().to(device), torch.randn(2, GRID[0] * GRID[1], HEADS * D).to(device)
        try:
            complaint = next(complaints(parts, x), None)
        except Exception as error:  # what a compiler may raise is its own affair
            complaint = f"they do not run ({str(error).splitlines()[0]})"
    if complaint:
        versions = f"torch {torch.__version__}, Triton {sys.modules['triton'].__version__}"
        warnings.warn(f"Triton's kernels on {device}: {complaint}; torch's run instead ({versions})", stacklevel=2)
    return complaint is None


def complaints(parts: nn.Module, x: Tensor) -> Iterator[str]:
    for dtype, tolerance in TOLERANCES.items():
        with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            by_torch, by_triton = (outcome(parts, x, kind) for kind in ("fast", "triton"))
        for name, expected in by_torch.items():
            error = float((by_triton[name] - expected).norm() / expected.norm())
            if not error < tolerance:
                yield f"{name} is off by {error:.1%} in {str(dtype).removeprefix('torch.')}"


def outcome(parts: nn.Module, x: Tensor, kernels: Kernels) -> dict[str, Tensor]:
    """The output and the gradients, by name."""
    x = x.clone().requires_grad_()
    parameters = dict(parts.named_parameters())
    with forced(kernels):
        y = parts(x)
        gradients = torch.autograd.grad(y.square().sum(), [x, *parameters.values()])
    return {"output": y.detach()} | dict(zip(["input", *parameters], gradients, strict=True))
