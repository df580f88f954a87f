"""The Triton kernels compute what the plain layers do, and torch's kernels: on a GPU, and in Triton's interpreter.

The interpreter must be asked for before Triton is imported, which other tests of this process may have done. So this
file runs itself in a process of its own, with TRITON_INTERPRET=1.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit import kernels
from xcit.kernels import choice, cross_covariance, local_patch, norms, trial
from xcit.models.fused import FusedLayer
from xcit.models.layer import XCiTLayer

from .test_layers import difference, nodes, randomised, tokens

triton = pytest.importorskip("triton")
from xcit.kernels import (  # noqa: E402
    triton_cross_covariance,
    triton_depthwise,
    triton_gelu,
    triton_local_patch,
    triton_norms,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
runs = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="no GPU: see the interpreter's test"
)
not_interpreted = pytest.mark.skipif(INTERPRETED, reason="is the interpreter's process")
precisions = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.015)])


@not_interpreted
def test_in_the_interpreter() -> None:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__],
        cwd=Path(__file__).parents[2],
        env=inherited | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"^(\d+) passed, 1 skipped in", done.stdout, re.MULTILINE)  # but this one
    assert passed and int(passed[1]) > 30, done.stdout


class Attention(nn.Module):
    torch, triton = "torch", "triton"

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.linspace(1, 3, heads)[:, None, None])

    def forward(self, qkv: Tensor, kernels: str | None) -> Tensor:
        if kernels is not None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(cross_covariance, "route", lambda *given: kernels)
                return cross_covariance.attend(qkv, self.temperature)
        q, k, v = cross_covariance.split_heads(qkv, 3, len(self.temperature))
        scores = F.normalize(q, dim=-2).mT @ F.normalize(k, dim=-2) * self.temperature
        return cross_covariance.merge_heads(v @ scores.softmax(dim=-1).mT)


class Depthwise(nn.Module):
    torch, triton = local_patch, triton_local_patch

    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.grid = grid

    def forward(self, x: Tensor, kernels: ModuleType | None) -> Tensor:
        return self.plain(x) if kernels is None else self.fast(x, kernels)

    def plain(self, x: Tensor) -> Tensor:
        return self.conv(x.mT.unflatten(-1, self.grid)).flatten(2).mT

    def fast(self, x: Tensor, kernels: ModuleType) -> Tensor:
        return kernels.depthwise(x, self.conv.weight, self.conv.bias, self.grid)


class NormDepthwise(Depthwise):
    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__(dim, grid)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def plain(self, x: Tensor) -> Tensor:
        return super().plain(self.norm(x))

    def fast(self, x: Tensor, kernels: ModuleType) -> Tensor:
        return kernels.norm_depthwise(x, self.norm, self.conv, self.grid)


class GELUBatchNormDepthwise(Depthwise):
    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__(dim, grid)
        self.bn = nn.BatchNorm2d(dim)
        self.scale = nn.Parameter(torch.ones(dim))

    def plain(self, x: Tensor) -> Tensor:
        image = F.gelu(x).mT.unflatten(-1, self.grid).contiguous()
        return self.scale * super().plain(self.bn(image).flatten(2).mT)

    def fast(self, x: Tensor, kernels: ModuleType) -> Tensor:
        return kernels.gelu_batchnorm_depthwise(x, self.bn, self.conv, self.scale, self.grid)


class Norm(nn.Module):
    torch, triton = norms, triton_norms

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor, kernels: ModuleType | None) -> Tensor:
        return self.norm(x) if kernels is None else LayerNorm.apply(x, self.norm.weight, self.norm.bias, kernels)


class LayerNorm(torch.autograd.Function):
    """As a function uses it that computes the norm again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, kernels: ModuleType) -> Tensor:
        ctx.save_for_backward(x, scale, shift)
        ctx.by_triton = kernels is triton_norms
        return norms.layer_norm(x, scale, shift, 1e-6, x.dtype, ctx.by_triton)[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift = ctx.saved_tensors
        _, *statistics = norms.layer_norm(x, scale, shift, 1e-6, x.dtype, ctx.by_triton)
        return *norms.layer_norm_backward(gradient, x, *statistics, scale, shift, ctx.by_triton), None


LOCAL = (Depthwise, NormDepthwise, GELUBatchNormDepthwise)


def outcome(module: nn.Module, x: Tensor, gradient: Tensor, kernels: Any) -> dict[str, Any]:
    """Everything that a training step finds, by name. kernels: a module of them, or None for the plain form."""
    module, x = deepcopy(module), x.clone().requires_grad_()
    y = module(x, kernels)
    y.backward(gradient.to(y.dtype))  # whatever is forced here: the forward pass has decided
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    found = {"output": y.detach(), "input": x.grad} | gradients | dict(module.named_buffers())
    return {name: value.cpu() for name, value in found.items()}


def check(module: nn.Module, x: Tensor, tolerance: float, outputs: int) -> None:
    """Against the plain form in fp64, and against torch's kernels. outputs: how many channels are put out."""
    gradient = tokens(outputs, x.shape[1], x.shape[0], seed=2).permute(2, 1, 0)  # not contiguous, nor is x
    x = x.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    found = outcome(module.to(DEVICE), x.to(DEVICE), gradient.to(DEVICE), module.triton)
    module.cpu()
    assert found["output"].dtype == found["input"].dtype == x.dtype
    exact = outcome(deepcopy(module).double(), x.double(), gradient.to(x.dtype).double(), None)
    assert max(difference(exact, found).values()) < tolerance
    if x.dtype == torch.float32:
        assert max(difference(outcome(module, x, gradient, module.torch), found).values()) < tolerance


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
        outcome(Attention(2).to(device), qkv.to(device), tokens(2, 20, 32, seed=2).to(device), kernels)
        for device, kernels in (("cpu", "torch"), (DEVICE, "triton"))
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
    """In parts so small that a map has several each way."""
    monkeypatch.setattr(triton_depthwise, "PART", (2, 2, 16, 3))
    monkeypatch.setattr(triton_depthwise, "SUMS_PART", (1, 4, 16, 1))
    for name, size in {"TOKENS": 8, "CHANNELS": 16, "VALUES": 256}.items():
        monkeypatch.setattr(triton_norms, name, size)
    B, H, W, C = shape
    module = randomised(lambda: kind(C, (H, W)))
    check(module, (tokens(B, H * W, C) + 0.5).to(dtype), tolerance, C)


@runs
@pytest.mark.parametrize("kind", LOCAL)
def test_local_patch_in_parts_of_the_ordinary_size(kind: type[Depthwise]) -> None:
    check(randomised(lambda: kind(7, (2, 17))), tokens(1, 2 * 17, 7), 1e-5, 7)


@runs
@precisions
@pytest.mark.parametrize("parts", [1, 3, 1024])
def test_layer_norm(parts: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In programs of one tile, and of several."""
    monkeypatch.setattr(triton_norms, "VALUES", 64)
    monkeypatch.setattr(triton_norms, "PARTS", parts)
    check(randomised(lambda: Norm(20)), (tokens(2, 7, 20) + 0.5).to(dtype), tolerance, 20)


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
    """More than are merged at a time; a mean far from zero must not take the variance's digits."""
    monkeypatch.setattr(triton_norms, "TOKENS", 8)
    x = tokens(*shape) + torch.linspace(-2, 100, shape[-1])
    exact = F.gelu(x.double())
    activated, mean, variance = triton_norms.gelu_statistics(x.to(DEVICE))
    torch.testing.assert_close(activated.cpu().double(), exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mean.cpu().double(), exact.mean((0, 1)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(variance.cpu().double(), exact.var((0, 1), correction=0), rtol=1e-4, atol=1e-6)


@runs
@pytest.mark.parametrize("momentum", [0.3, None])
def test_batch_after_batch_counts_the_same_statistics(momentum: float | None) -> None:
    module = randomised(lambda: GELUBatchNormDepthwise(8, (1, 3)))
    module.bn.momentum = momentum
    plain, fast = deepcopy(module), module.to(DEVICE)
    for seed in range(3):
        plain(tokens(2, 3, 8, seed=seed), None)
        fast(tokens(2, 3, 8, seed=seed).to(DEVICE), triton_local_patch)
    for name, buffer in plain.bn.named_buffers():
        torch.testing.assert_close(getattr(fast.bn, name).cpu(), buffer)


@runs
@pytest.mark.parametrize("bn", [nn.BatchNorm2d(8).eval(), nn.BatchNorm2d(8, track_running_stats=False)])
def test_another_batchnorm_is_called_as_it_is(bn: nn.Module) -> None:
    module = randomised(lambda: GELUBatchNormDepthwise(8, (2, 3)))
    module.bn = deepcopy(bn)
    check(module, tokens(2, 6, 8), 1e-5, 8)


@runs
def test_batchnorm_of_one_value_complains() -> None:
    module = GELUBatchNormDepthwise(8, (1, 1)).to(DEVICE)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        module(tokens(1, 1, 8).to(DEVICE), triton_local_patch)


@runs
@pytest.mark.parametrize("kind", [lambda: Attention(2), *(lambda kind=kind: kind(16, (2, 20)) for kind in LOCAL)])
def test_what_is_kept_for_the_backward_pass(kind: Any) -> None:
    """x, and beside it the parameters and what torch's kernels keep, or two numbers a token."""
    module = kind().to(DEVICE)
    x = tokens(2, 40, 96 if isinstance(module, Attention) else 16).to(DEVICE).requires_grad_()
    kept = []
    for package in (module.torch, module.triton):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()), lambda t: t):
            module(x, package)
        kept.append(sum(sizes))
    assert kept[1] <= kept[0] + 2 * 2 * 40 * isinstance(module, NormDepthwise)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = XCiTLayer(32, 2, 1.0)

    def forward(self, x: Tensor, kind: kernels.Kernels) -> Tensor:
        with kernels.forced(kind):
            return self.layer(x, (2, 3))


@runs
@pytest.mark.parametrize(("autocast", "tolerance"), [(False, 1e-5), (True, 0.03)])
def test_a_whole_layer(autocast: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        hand_over(monkeypatch)
    module, x = randomised(Layer).to(DEVICE), tokens(2, 6, 32).to(DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        plain, fast = (outcome(module, x, tokens(2, 6, 32, seed=2).to(DEVICE), kind) for kind in ("plain", "triton"))
    assert max(difference(plain, fast).values()) < tolerance
    assert plain["output"].dtype == fast["output"].dtype


def hand_over(monkeypatch: pytest.MonkeyPatch, wanted: Callable[[Tensor], bool] = lambda x: True) -> None:
    """As if the tokens were on a GPU."""
    for module in (choice, cross_covariance, local_patch):
        monkeypatch.setattr(module, "by_triton", wanted)


def by_triton_in(output: Tensor) -> set[str]:
    """Which parts' backward pass, of those that the output waits for, is Triton's."""
    found = [node for node in nodes(output) if hasattr(node, "_forward_cls")]
    attention = {"attention" for node in found if getattr(node, "route", None) == "triton"}
    return attention | {
        node._forward_cls.__name__ for node in found if node._forward_cls.__module__ == triton_local_patch.__name__
    }


@runs
def test_the_kernels_hand_over_to_their_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = XCiTLayer(32, 2, 1.0).to(DEVICE), tokens(2, 3, 32).to(DEVICE)
    with kernels.forced("fast"):
        assert by_triton_in(layer(x, (1, 3))) == set()
    if INTERPRETED:
        hand_over(monkeypatch)
    with kernels.forced("triton"):
        assert by_triton_in(layer(x, (1, 3))) == {"attention", "NormDepthwise", "GELUBatchNormDepthwise"}
        wide = tokens(1, 3, 3 * 129).to(DEVICE).requires_grad_()
        assert by_triton_in(cross_covariance.attend(wide, torch.ones(1, 1, 1, device=DEVICE))) == set()


@runs
@pytest.mark.parametrize(("autocast", "tolerance"), [(False, 1e-5), (True, 0.03)])
def test_a_folded_layer(autocast: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        hand_over(monkeypatch)
    layer, x = randomised(lambda: XCiTLayer(32, 2, 1.0)).to(DEVICE).eval(), tokens(2, 6, 32).to(DEVICE)
    folded = FusedLayer(layer).requires_grad_(False)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast), torch.no_grad():
        with kernels.forced("plain"):
            expected = layer(x, (2, 3))
        launches = counted(monkeypatch)
        with kernels.forced("triton"):
            found = folded(x, (2, 3))
    assert (found - expected).norm() < tolerance * expected.norm()
    assert launches == {"triton_cross_covariance": 1, "triton_depthwise": 2, "triton_norms": 1}


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each module launches kernels from now on."""
    launches: Counter[str] = Counter()
    for package in (triton_cross_covariance, triton_depthwise, triton_norms):
        name = package.__name__.rsplit(".")[-1]
        monkeypatch.setattr(package, "device_of", lambda x, name=name: launches.update([name]) or nullcontext())
    return launches


class CompiledLayer(Layer):
    def forward(self, x: Tensor, kind: kernels.Kernels) -> Tensor:
        with kernels.forced(kind):
            return torch.compile(self.layer, fullgraph=True)(x, (2, 3))


@runs
@pytest.mark.parametrize(("autocast", "tolerance"), [(False, 1e-5), (True, 0.03)])
def test_a_compiled_layer_calls_them(autocast: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        hand_over(monkeypatch)
    torch.compiler.reset()
    module, x, gradient = randomised(Layer).to(DEVICE), tokens(2, 6, 32).to(DEVICE), tokens(2, 6, 32, seed=2).to(DEVICE)
    compiled = CompiledLayer().to(DEVICE)
    compiled.load_state_dict(module.state_dict())
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        expected = outcome(module, x, gradient, "triton")
        launches = counted(monkeypatch)
        found = outcome(compiled, x, gradient, "triton")
    assert max(difference(expected, found).values()) < tolerance
    assert launches == {
        "triton_cross_covariance": 2,  # forward, backward
        "triton_depthwise": 6,  # of each convolution the output, the sums over taps, the gradient of the input
        "triton_norms": 1,  # the statistics of BatchNorm: the compiler makes the layer norm itself
    }


@runs
@pytest.mark.parametrize("frozen", ["norm2", "mlp.fc1", "mlp.fc2", "local_mp.conv1", "norm3", "attn.qkv"])
def test_a_layer_of_which_a_part_is_frozen(frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        hand_over(monkeypatch)
    module, x = randomised(Layer).to(DEVICE), tokens(2, 6, 32).to(DEVICE)
    module.layer.get_submodule(frozen).requires_grad_(False)
    plain, fast = ({} for _ in range(2))
    for kind, found in (("plain", plain), ("triton", fast)):
        copy = deepcopy(module)
        copy(x, kind).square().sum().backward()
        found |= {name: parameter.grad for name, parameter in copy.named_parameters() if parameter.grad is not None}
    assert plain.keys() == fast.keys()
    assert max(difference(plain, fast).values()) < 1e-5


@pytest.fixture
def small_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes a minute for the whole."""
    if INTERPRETED:
        hand_over(monkeypatch, lambda x: choice.kind() == "triton")
        monkeypatch.setattr(trial, "SHAPES", ((16, (3, 2)),))


@runs
@pytest.mark.usefixtures("small_trial")
def test_the_kernels_agree_with_torch(recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPUs' generators are the run's"))
    before = torch.get_rng_state()
    launches = counted(monkeypatch)
    with torch.inference_mode():
        assert trial.agrees(torch.device(DEVICE))
    assert torch.equal(torch.get_rng_state(), before)
    assert not [warning for warning in recwarn if "Triton" in str(warning.message)]
    assert min(launches.values()) > 3 and len(launches) == 3


def fails(*given: Any) -> Any:
    raise AssertionError


def fails_at_length(*given: Any) -> Any:
    raise RuntimeError("no compiler\nand much more")


def wrong_by_a_fifth(*given: Any) -> Any:
    of_taps, of_inside = triton_depthwise.sums_over_taps(*given)
    return 0.8 * of_taps, of_inside


def not_a_number(*given: Any) -> Any:
    return tuple(torch.nan * sums for sums in triton_depthwise.sums_over_taps(*given))


@runs
@pytest.mark.usefixtures("small_trial")
@pytest.mark.parametrize(
    ("name", "fault", "told"),
    [
        ("sums_over_taps", wrong_by_a_fifth, r"\S+ is off by \d+.\d% in float32"),
        ("sums_over_taps", not_a_number, r"\S+ is off by nan% in float32"),
        ("convolve", fails, r"they do not run \(AssertionError: \)"),
        ("convolve", fails_at_length, r"they do not run \(RuntimeError: no compiler\)"),
    ],
)
def test_kernels_that_are_wrong_or_do_not_run_are_told(
    name: str, fault: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_local_patch, name, fault)
    line = rf"^Triton's kernels on \w+: {told}; torch's run instead \(torch .+, triton .+\)$"
    with pytest.warns(UserWarning, match=line):
        assert not trial.agrees(torch.device(DEVICE))
