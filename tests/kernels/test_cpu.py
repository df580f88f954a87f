"""The C++ kernels agree with torch, and torch runs if they cannot."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit.kernels import cross_covariance, gelu_linear
from xcit.kernels.cpu import library
from xcit.kernels.cpu.cross_covariance import attend_backward, attend_forward
from xcit.kernels.dispatch import backend_for
from xcit.kernels.gelu import gelu, gelu_backward, gelu_grad_x
from xcit.kernels.layer_norm import layer_norm_backward

pytestmark = pytest.mark.usefixtures("one_thread")

X86 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
compiled = pytest.mark.skipif(library.LIBRARY is None, reason="nothing was compiled for this CPU")


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.skipif(not X86 or not shutil.which("c++"), reason="there is no compiler, or no x86 CPU with AVX2")
def test_the_kernels_were_compiled() -> None:
    assert library.LIBRARY is not None, "install the project again: pip install -e ."


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="this CPU runs those for AVX2 anyway")
def test_the_kernels_for_avx2() -> None:
    """Runs this file and those of the other C++ kernels, without torch.compile, which detects the CPU itself."""
    files = [Path(__file__).with_name(f"test_{name}.py") for name in ("cpu", "batchnorm", "local_patch")]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "not compile", *files],
        cwd=Path(__file__).parents[2],
        env=inherited | {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and re.search(r"[1-9]\d* passed", done.stdout), done.stdout[-3000:]


@compiled
@pytest.mark.parametrize("in_place", [False, True])
def test_gelu(calls: list[str], in_place: bool) -> None:
    x = torch.cat([torch.linspace(-30, 30, 4080), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 87, -87, 1e30, -1e30] * 2)])
    exact = F.gelu(x.double())
    y = gelu(x, in_place=in_place)
    assert calls == ["gelu"]
    assert ((y.double() - exact).abs() <= 4e-7 * exact.abs().clamp(min=1)).all()
    assert (y.data_ptr() == x.data_ptr()) == in_place


@compiled
def test_the_gradient_of_gelu(calls: list[str]) -> None:
    x, gradient = 3 * tokens(3, 7, 48), tokens(3, 7, 48, seed=2)
    exact, given = torch.ops.aten.gelu_backward(gradient.double(), x.double()), gradient.clone()
    alone = gelu_grad_x(x, gradient)
    assert torch.equal(gradient, given)
    activated, grad_x = gelu_backward(x, gradient, "cpu")
    assert calls == ["gelu_backward", "gelu_backward"]
    assert torch.equal(alone, grad_x)
    assert error(activated, F.gelu(x.double())) < 2e-7
    assert error(grad_x, exact) < 2e-7


def attention_backend(qkv: Tensor, temperature: Tensor) -> str:
    return backend_for("attend", qkv, temperature, fits=cross_covariance.fits)


@compiled
@pytest.mark.parametrize(
    ("images", "length", "heads", "d"),
    [(2, 196, 8, 48), (1, 1, 4, 32), (3, 7, 2, 16), (2, 700, 2, 64), (1, 257, 1, 128), (1, 9000, 1, 32)],
)
def test_attention(calls: list[str], images: int, length: int, heads: int, d: int) -> None:
    """Errors are like those of torch in fp32, also if the number of tokens is no multiple of a tile or a block."""
    qkv = tokens(images, length, 3 * heads * d) * torch.linspace(0.1, 3, 3 * heads * d)  # of unequal size
    temperature = torch.linspace(0.5, 2, heads)[:, None, None]
    gradient = tokens(images, length, heads * d, seed=2)
    exact = cross_covariance.torch_forward(qkv.double(), temperature.double())
    assert attention_backend(qkv, temperature) == "cpu"
    found = attend_forward(qkv, temperature)
    gradients = attend_backward(gradient, qkv, temperature, *found[1:])
    exact_gradients = cross_covariance.torch_backward(gradient.double(), qkv.double(), temperature.double(), *exact[1:])
    assert calls == ["attend", "attend_backward"]
    torchs = cross_covariance.torch_forward(qkv, temperature)
    torchs_gradients = cross_covariance.torch_backward(gradient, qkv, temperature, *torchs[1:])
    for one, torchs_one, exact_one in zip(
        (*found, *gradients), (*torchs, *torchs_gradients), (*exact, *exact_gradients), strict=True
    ):
        assert one.shape == exact_one.shape
        assert error(one, exact_one) < 4 * error(torchs_one, exact_one) + 1e-6


@compiled
def test_nan_stays_nan() -> None:
    x = torch.full((16,), torch.nan)
    assert gelu(x).isnan().all()
    assert torch.stack(gelu_backward(x, torch.ones(16), "cpu")).isnan().all()
    qkv = tokens(1, 5, 96)
    qkv[0, 2, 3] = torch.nan
    assert attend_forward(qkv, torch.ones(1, 1, 1))[0].isnan().any()


@compiled
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 16), (3, 50, 48), (2, 200, 384)])
def test_the_gradient_of_a_layer_norm(calls: list[str], shape: tuple[int, ...], residual: bool) -> None:
    """Errors are like those of torch in fp32, also for tokens with other strides."""
    x, gradient, rest = 3 * tokens(*shape) + 1, tokens(*shape, seed=2), tokens(*shape, seed=3) if residual else None
    scale, shift = torch.linspace(-1, 2, shape[-1]), torch.linspace(1, -1, shape[-1])

    def outcomes(dtype: torch.dtype) -> tuple[Tensor | None, ...]:
        of, by, a, b = (t.to(dtype) for t in (x, gradient, scale, shift))
        _, mean, rstd = torch.native_layer_norm(of, of.shape[-1:], a, b, 1e-6)
        more = rest if rest is None else rest.to(dtype)
        return layer_norm_backward(by, of, mean, rstd, a, b, more, [True] * 3, "torch")

    exact = outcomes(torch.float64)
    assert calls == []
    found = outcomes(torch.float32)
    x, gradient = x.mT.contiguous().mT, gradient.mT.contiguous().mT
    strided = outcomes(torch.float32)
    assert calls == ["layer_norm_backward"] * 2
    for one, other, value in zip(found, strided, exact, strict=True):
        assert one is not None and other is not None and value is not None
        assert error(one, value) < 1e-6 and torch.equal(one, other)


@pytest.mark.parametrize("wanted", [[False, True, True], [True, False, False]])
def test_torch_computes_a_layer_norms_gradient_of_other_widths(calls: list[str], wanted: list[bool]) -> None:
    """torch runs if the number of channels is no multiple of a tile."""
    x, residual, ones = tokens(2, 5, 24), tokens(2, 5, 24, seed=2), torch.ones(24)
    _, mean, rstd = torch.native_layer_norm(x, [24], ones, ones, 1e-6)
    grad_x, *rest = layer_norm_backward(x, x, mean, rstd, ones, ones, residual, wanted, "torch")
    expected, *_ = torch.ops.aten.native_layer_norm_backward(x, x, [24], mean, rstd, ones, ones, wanted)
    assert [given is not None for given in (grad_x, *rest)] == wanted and calls == []
    if grad_x is not None:
        assert torch.equal(grad_x, residual + expected)


@compiled
@pytest.mark.parametrize("form", ["eager", "compiled"])
def test_maps_with_their_channels_last(calls: list[str], form: str) -> None:
    """Eager kernels accept channels-last maps. In compiled code torch runs, because the compiler may change strides."""
    x = tokens(2, 16, 3, 5).contiguous(memory_format=torch.channels_last)
    gradient = tokens(2, 16, 3, 5, seed=2).contiguous(memory_format=torch.channels_last)
    functions = (gelu, gelu_grad_x, gelu_backward)
    forward, grad_only, backward = functions if form == "eager" else map(torch.compile, functions)
    exact = torch.ops.aten.gelu_backward(gradient, x)
    found = {"gelu": forward(x), "gradient": grad_only(x, gradient)}
    found["again"], found["grad_x"] = backward(x, gradient.clone(), "cpu")
    assert calls == (["gelu", "gelu_backward", "gelu_backward"] if form == "eager" else [])
    for name, value in found.items():
        assert value.stride() == x.stride(), name
        torch.testing.assert_close(value, F.gelu(x) if name in ("gelu", "again") else exact, rtol=0, atol=1e-6)


@compiled
def test_a_gradient_with_other_strides_is_torchs(calls: list[str]) -> None:
    x = tokens(2, 16, 3, 5)
    gradient = tokens(2, 16, 3, 5, seed=2).contiguous(memory_format=torch.channels_last)
    exact = torch.ops.aten.gelu_backward(gradient, x)
    assert torch.equal(gelu_backward(x, gradient, "cpu")[1], exact)
    assert torch.equal(gelu_grad_x(x, gradient), exact)
    assert calls == []


@pytest.mark.parametrize(
    "x",
    [tokens(3, 5), tokens(4, 32)[:, ::2], tokens(32).double(), tokens(32).bfloat16(), torch.empty(32, device="meta")],
    ids=["no whole tile", "strided", "fp64", "bf16", "meta"],
)
def test_torch_runs_where_they_cannot(calls: list[str], x: Tensor) -> None:
    y = gelu(x, in_place=True)
    activated, grad_x = gelu_backward(x, torch.ones_like(x), "cpu")
    assert calls == []
    for value in (y, activated, grad_x):
        assert (value.shape, value.dtype, value.device) == (x.shape, x.dtype, x.device)
    if not x.is_meta:
        assert torch.equal(y, F.gelu(x))


@compiled
@pytest.mark.parametrize(
    "inside",
    [lambda f, x: torch.func.vmap(f)(x), lambda f, x: torch.jit.trace(f, x, check_trace=False)(x)],
    ids=["vmap", "trace"],
)
def test_mapped_and_traced_tensors_are_torchs(calls: list[str], inside: Callable[..., Tensor]) -> None:
    x = tokens(4, 32)
    assert torch.equal(inside(gelu, x), F.gelu(x))
    assert calls == []


@compiled
def test_compiled_code_calls_the_kernels_of_attention(calls: list[str]) -> None:
    qkv, temperature = tokens(3, 20, 96).requires_grad_(), torch.ones(2, 1, 1, requires_grad=True)
    torch.library.opcheck(torch.ops.xcit.attend_forward.default, (qkv.detach(), temperature.detach()))
    eager = cross_covariance.Attend.apply(qkv, temperature)
    gradients = torch.autograd.grad(eager.square().sum(), (qkv, temperature))
    calls.clear()
    found = torch.compile(cross_covariance.Attend.apply, fullgraph=True)(qkv, temperature)
    assert torch.equal(found, eager)
    for one, other in zip(torch.autograd.grad(found.square().sum(), (qkv, temperature)), gradients, strict=True):
        torch.testing.assert_close(one, other)
    assert calls == ["attend", "attend_backward"]


@compiled
def test_compiled_code_calls_the_kernels_of_gelu(calls: list[str]) -> None:
    x, layer, scale = tokens(3, 20, 64).requires_grad_(), nn.Linear(64, 16), torch.ones(16)
    for operator, arguments in (
        (torch.ops.xcit.gelu, (x.detach(),)),
        (torch.ops.xcit.gelu_backward, (x.detach(), x.detach())),
        (torch.ops.xcit.gelu_grad_x, (x.detach(), x.detach())),
    ):
        torch.library.opcheck(operator.default, arguments)
    eager = gelu_linear(x, layer, scale)
    gradients = torch.autograd.grad(eager.square().sum(), (x, *layer.parameters()))
    calls.clear()
    found = torch.compile(gelu_linear, fullgraph=True)(x, layer, scale)
    torch.testing.assert_close(found, eager)
    for one, other in zip(torch.autograd.grad(found.square().sum(), (x, *layer.parameters())), gradients, strict=True):
        torch.testing.assert_close(one, other)
    assert calls == ["gelu", "gelu_backward"]
    gradient = torch.compile(gelu_grad_x, fullgraph=True)(x.detach(), torch.ones_like(x))
    torch.testing.assert_close(gradient, gelu_grad_x(x.detach(), torch.ones_like(x)))
    assert calls == ["gelu", "gelu_backward", "gelu_backward", "gelu_backward"]


@compiled
def test_fewer_heads_than_threads_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv, temperature = tokens(1, 5, 96), torch.ones(1, 1, 1)
    assert attention_backend(qkv, temperature) == backend_for("attend", qkv, temperature) == "cpu"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert attention_backend(qkv, temperature) == "torch"
