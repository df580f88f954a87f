"""The Triton kernels agree with the plain layers and with torch's kernels: on a GPU, and in Triton's interpreter.

The interpreter is switched on before Triton is imported, which other tests of this process may have done already. So
this file runs itself, and the file with whole layers, in another process with TRITON_INTERPRET=1.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit.kernels import cross_covariance, depthwise, dispatch, layer_norm

from .test_layers import difference, randomized, tokens

triton = pytest.importorskip("triton")
# The other tests of Triton import these from here.
from xcit.kernels.triton import cross_covariance as triton_cross_covariance  # noqa: E402, F401
from xcit.kernels.triton import depthwise as triton_depthwise  # noqa: E402
from xcit.kernels.triton import gelu as triton_gelu  # noqa: E402
from xcit.kernels.triton import layer_norm as triton_norms  # noqa: E402
from xcit.kernels.triton import local_patch as triton_local_patch  # noqa: E402, F401

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
runs = pytest.mark.gpu  # conftest.py runs these in the interpreter's process, too
not_interpreted = pytest.mark.skipif(INTERPRETED, reason="this is the interpreter's process")
precisions = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.015)])


@not_interpreted
def test_in_the_interpreter() -> None:
    here = Path(__file__)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__, here.with_name("test_triton_layers.py")],
        cwd=here.parents[2],
        env=inherited | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"^(\d+) passed, 2 skipped in", done.stdout, re.MULTILINE)  # this one, and one for a GPU
    assert passed and int(passed[1]) > 30, done.stdout


@contextmanager
def running(backend: str) -> Iterator[None]:
    """A context in which operations run with Triton, also in its interpreter on a CPU, or with torch."""
    with pytest.MonkeyPatch.context() as patch:
        if backend == "triton":
            patch.setattr(dispatch, "runs_triton", lambda x: True)
        with dispatch.without(*([] if backend == "triton" else dispatch.OPERATIONS)):
            yield


class Attention(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.linspace(1, 3, heads)[:, None, None])

    def forward(self, qkv: Tensor, backend: str | None) -> Tensor:
        if backend is not None:
            with running(backend):
                return cross_covariance.attend(qkv, self.temperature)
        q, k, v = cross_covariance.split_heads(qkv, 3, len(self.temperature))
        scores = F.normalize(q, dim=-2).mT @ F.normalize(k, dim=-2) * self.temperature
        return cross_covariance.merge_heads(v @ scores.softmax(dim=-1).mT)


class Depthwise(nn.Module):
    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.grid = grid

    def forward(self, x: Tensor, backend: str | None) -> Tensor:
        if backend is None:
            return self.plain(x)
        with running(backend):
            return self.fast(x)

    def plain(self, x: Tensor) -> Tensor:
        return self.conv(x.mT.unflatten(-1, self.grid)).flatten(2).mT

    def fast(self, x: Tensor) -> Tensor:
        return depthwise.depthwise(x, self.conv.weight, self.conv.bias, self.grid)


class NormDepthwise(Depthwise):
    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__(dim, grid)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def plain(self, x: Tensor) -> Tensor:
        return super().plain(self.norm(x))

    def fast(self, x: Tensor) -> Tensor:
        return depthwise.norm_depthwise(x, self.norm, self.conv, self.grid)


class GELUBatchNormDepthwise(Depthwise):
    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__(dim, grid)
        self.bn = nn.BatchNorm2d(dim)
        self.scale = nn.Parameter(torch.ones(dim))

    def plain(self, x: Tensor) -> Tensor:
        image = F.gelu(x).mT.unflatten(-1, self.grid).contiguous()
        return self.scale * super().plain(self.bn(image).flatten(2).mT)

    def fast(self, x: Tensor) -> Tensor:
        return depthwise.gelu_batchnorm_depthwise(x, self.bn, self.conv, self.scale, self.grid)


class Norm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor, backend: str | None) -> Tensor:
        return self.norm(x) if backend is None else LayerNorm.apply(x, self.norm.weight, self.norm.bias, backend)


class LayerNorm(torch.autograd.Function):
    """Recomputes the norm in its backward pass, as the operations do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, backend: dispatch.Backend) -> Tensor:
        ctx.save_for_backward(x, scale, shift)
        ctx.backend = backend
        return layer_norm.layer_norm(x, scale, shift, 1e-6, x.dtype, backend)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift = ctx.saved_tensors
        _, *statistics = layer_norm.layer_norm(x, scale, shift, 1e-6, x.dtype, ctx.backend)
        norm = *statistics, scale, shift
        return *layer_norm.layer_norm_backward(grad, x, *norm, None, [True] * 3, ctx.backend), None


LOCAL = (Depthwise, NormDepthwise, GELUBatchNormDepthwise)


def outcome(module: nn.Module, x: Tensor, gradient: Tensor, backend: Any) -> dict[str, Any]:
    """The results of a training step, by name. backend: "torch", "triton", or None for the plain form."""
    module, x = deepcopy(module), x.clone().requires_grad_()
    y = module(x, backend)
    y.backward(gradient.to(y.dtype))  # outside of `running`: the forward pass has decided
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    found = {"output": y.detach(), "input": x.grad} | gradients | dict(module.named_buffers())
    return {name: value.cpu() for name, value in found.items()}


def check(module: nn.Module, x: Tensor, tolerance: float, outputs: int) -> None:
    """Compare with the plain form in fp64, and with torch's kernels. outputs: the number of output channels."""
    gradient = tokens(outputs, x.shape[1], x.shape[0], seed=2).permute(2, 1, 0)  # not contiguous, nor is x
    x = x.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    found = outcome(module.to(DEVICE), x.to(DEVICE), gradient.to(DEVICE), "triton")
    module.cpu()
    assert found["output"].dtype == found["input"].dtype == x.dtype
    exact = outcome(deepcopy(module).double(), x.double(), gradient.to(x.dtype).double(), None)
    assert max(difference(exact, found).values()) < tolerance
    if x.dtype == torch.float32:
        assert max(difference(outcome(module, x, gradient, "torch"), found).values()) < tolerance


@runs
@precisions
@pytest.mark.parametrize(
    ("B", "N", "heads", "d"),
    [(2, 37, 2, 16), (1, 129, 2, 48), (1, 64, 1, 64), (2, 3, 2, 20), (1, 33, 1, 100)],
)
def test_attention(B: int, N: int, heads: int, d: int, dtype: torch.dtype, tolerance: float) -> None:  # noqa: N803
    check(Attention(heads), tokens(B, N, 3 * heads * d).to(dtype), tolerance, heads * d)


@runs
def test_attention_with_channels_of_zeros() -> None:
    qkv = tokens(2, 20, 96)
    qkv[..., 3] = qkv[..., 40] = 0  # of the queries and of the keys
    outcomes = [
        outcome(Attention(2).to(device), qkv.to(device), tokens(2, 20, 32, seed=2).to(device), backend)
        for device, backend in (("cpu", "torch"), (DEVICE, "triton"))
    ]
    outcomes = [{name: value for name, value in found.items() if name != "input"} for found in outcomes]
    assert max(difference(*outcomes).values()) < 1e-5


@runs
@pytest.mark.parametrize("kind", LOCAL)
@pytest.mark.parametrize(
    ("shape", "dtype", "tolerance"),
    [
        ((2, 3, 3, 7), torch.float32, 1e-5),
        ((2, 1, 2, 20), torch.float32, 1e-5),
        ((1, 3, 2, 20), torch.bfloat16, 0.015),
    ],
)
def test_local_patch(
    kind: type[Depthwise],
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The parts are so small that a map has several in each direction."""
    monkeypatch.setattr(triton_depthwise, "PART", (2, 2, 16, 3))
    monkeypatch.setattr(triton_depthwise, "SUMS_PART", (1, 4, 16, 1))
    monkeypatch.setattr(triton_gelu, "TOKENS", 8)
    monkeypatch.setattr(triton_gelu, "CHANNELS", 16)
    monkeypatch.setattr(triton_norms, "VALUES", 256)
    B, H, W, C = shape
    module = randomized(lambda: kind(C, (H, W)))
    check(module, (tokens(B, H * W, C) + 0.5).to(dtype), tolerance, C)


@runs
@pytest.mark.parametrize("kind", LOCAL)
def test_local_patch_in_parts_of_the_ordinary_size(kind: type[Depthwise]) -> None:
    check(randomized(lambda: kind(7, (2, 17))), tokens(1, 2 * 17, 7), 1e-5, 7)


@runs
@precisions
@pytest.mark.parametrize("parts", [1, 3, 1024])
def test_layer_norm(parts: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs have one tile, or several."""
    monkeypatch.setattr(triton_norms, "VALUES", 64)
    monkeypatch.setattr(triton_norms, "PARTS", parts)
    check(randomized(lambda: Norm(20)), (tokens(2, 7, 20) + 0.5).to(dtype), tolerance, 20)


@runs
@precisions
def test_gelu_backward(dtype: torch.dtype, tolerance: float) -> None:
    x, gradient = (3 * tokens(50, 7, 3)).to(dtype).permute(2, 1, 0), tokens(3, 7, 50, seed=2).to(dtype)
    exact = F.gelu(x.double()), torch.ops.aten.gelu_backward(gradient.double(), x.double())
    found = triton_gelu.gelu_backward(x.to(DEVICE), gradient.to(DEVICE))
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == dtype
        assert (one.cpu().double() - other).norm() < tolerance * other.norm()


@runs
@pytest.mark.parametrize("shape", [(3, 401, 20), (1, 9, 7)])
def test_statistics_of_many_parts(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """There are more parts than are merged at a time. A mean far from zero must not make the variance inexact."""
    monkeypatch.setattr(triton_gelu, "TOKENS", 8)
    x = tokens(*shape) + torch.linspace(-2, 100, shape[-1])
    exact = F.gelu(x.double())
    activated, mean, variance = triton_gelu.gelu_statistics(x.to(DEVICE))
    torch.testing.assert_close(activated.cpu().double(), exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mean.cpu().double(), exact.mean((0, 1)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(variance.cpu().double(), exact.var((0, 1), correction=0), rtol=1e-4, atol=1e-6)


@runs
@pytest.mark.parametrize("momentum", [0.3, None])
def test_batch_after_batch_counts_the_same_statistics(momentum: float | None) -> None:
    module = randomized(lambda: GELUBatchNormDepthwise(8, (1, 3)))
    module.bn.momentum = momentum
    plain, fast = deepcopy(module), module.to(DEVICE)
    for seed in range(3):
        plain(tokens(2, 3, 8, seed=seed), None)
        fast(tokens(2, 3, 8, seed=seed).to(DEVICE), "triton")
    for name, buffer in plain.bn.named_buffers():
        torch.testing.assert_close(getattr(fast.bn, name).cpu(), buffer)


@runs
@pytest.mark.parametrize("bn", [nn.BatchNorm2d(8).eval(), nn.BatchNorm2d(8, track_running_stats=False)])
def test_another_batchnorm_is_called_as_it_is(bn: nn.Module) -> None:
    module = randomized(lambda: GELUBatchNormDepthwise(8, (2, 3)))
    module.bn = deepcopy(bn)
    check(module, tokens(2, 6, 8), 1e-5, 8)


@runs
def test_batchnorm_refuses_one_value_per_channel() -> None:
    module = GELUBatchNormDepthwise(8, (1, 1)).to(DEVICE)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        module(tokens(1, 1, 8).to(DEVICE), "triton")


@runs
@pytest.mark.parametrize("kind", [lambda: Attention(2), *(lambda kind=kind: kind(16, (2, 20)) for kind in LOCAL)])
def test_what_is_saved_for_the_backward_pass(kind: Any) -> None:
    """Saves only x, the parameters, and either the tensors that torch's kernels save or two numbers per token."""
    module = kind().to(DEVICE)
    x = tokens(2, 40, 96 if isinstance(module, Attention) else 16).to(DEVICE).requires_grad_()
    saved = []
    for backend in ("torch", "triton"):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()), lambda t: t):
            module(x, backend)
        saved.append(sum(sizes))
    assert saved[1] <= saved[0] + 2 * 2 * 40 * isinstance(module, NormDepthwise)
