"""Whole layers with Triton kernels, and the self-check. test_triton.py runs this file in Triton's interpreter."""

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xcit import kernels
from xcit.kernels import cross_covariance, dispatch, self_check
from xcit.models.fast.inference import fold
from xcit.models.fast.training import fuse_for_training
from xcit.models.layer import XCiTLayer

from .test_layers import difference, nodes, randomized, tokens
from .test_triton import (
    DEVICE,
    INTERPRETED,
    not_interpreted,
    outcome,
    runs,
    triton_cross_covariance,
    triton_depthwise,
    triton_gelu,
    triton_local_patch,
    triton_norms,
)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = fuse_for_training(XCiTLayer(32, 2, 1.0))

    def forward(self, x: Tensor, kind: kernels.Kernels) -> Tensor:
        with kernels.forced(kind):
            return self.layer(x, (2, 3))


@runs
@pytest.mark.parametrize(("autocast", "tolerance"), [(False, 1e-5), (True, 0.03)])
def test_a_whole_layer(autocast: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        hand_over(monkeypatch)
    module, x = randomized(Layer).to(DEVICE), tokens(2, 6, 32).to(DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        plain, fast = (outcome(module, x, tokens(2, 6, 32, seed=2).to(DEVICE), kind) for kind in ("plain", "triton"))
    assert max(difference(plain, fast).values()) < tolerance
    assert plain["output"].dtype == fast["output"].dtype


def hand_over(monkeypatch: pytest.MonkeyPatch, wanted: Callable[[Tensor], bool] = lambda x: True) -> None:
    """Run Triton kernels in the interpreter, as if the tokens were on a GPU."""
    monkeypatch.setattr(dispatch, "runs_triton", wanted)


def by_triton_in(output: Tensor) -> set[str]:
    """The nodes of the output's graph that run Triton kernels in the backward pass."""
    found = [node for node in nodes(output) if hasattr(node, "_forward_cls")]
    by_backend = {node._forward_cls.__name__ for node in found if getattr(node, "backend", None) == "triton"}
    return by_backend | {
        node._forward_cls.__name__ for node in found if node._forward_cls.__module__ == triton_local_patch.__name__
    }


@runs
def test_the_operations_of_a_layer_run_by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = fuse_for_training(XCiTLayer(32, 2, 1.0)).to(DEVICE), tokens(2, 3, 32).to(DEVICE)
    with kernels.forced("fast"):
        assert by_triton_in(layer(x, (1, 3))) == set()
    if INTERPRETED:
        hand_over(monkeypatch)
    with kernels.forced("triton"):
        local_patch = {"NormDepthwise", "GELUBatchNormDepthwise"}
        assert by_triton_in(layer(x, (1, 3))) == {"Attend", "NormLinear", "GELULinear"} | local_patch
        wide = tokens(1, 3, 3 * 129).to(DEVICE).requires_grad_()
        assert by_triton_in(cross_covariance.attend(wide, torch.ones(1, 1, 1, device=DEVICE))) == set()


@runs
@pytest.mark.parametrize(("autocast", "tolerance"), [(False, 1e-5), (True, 0.03)])
def test_a_folded_layer(autocast: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        hand_over(monkeypatch)
    layer, x = randomized(lambda: XCiTLayer(32, 2, 1.0)).to(DEVICE).eval(), tokens(2, 6, 32).to(DEVICE)
    folded = fold(deepcopy(layer)).requires_grad_(False)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast), torch.no_grad():
        with kernels.forced("plain"):
            expected = layer(x, (2, 3))
        launches = counted(monkeypatch)
        with kernels.forced("triton"):
            found = folded(x, (2, 3))
    assert (found - expected).norm() < tolerance * expected.norm()
    assert launches == {"cross_covariance": 1, "depthwise": 2, "layer_norm": 1}


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the kernel launches of each module from now on."""
    launches: Counter[str] = Counter()
    for package in (triton_cross_covariance, triton_depthwise, triton_gelu, triton_norms):
        name = package.__name__.rsplit(".")[-1]
        monkeypatch.setattr(package, "device_of", lambda x, name=name: launches.update([name]) or nullcontext())
    return launches


@pytest.mark.gpu
@not_interpreted
def test_a_compiled_layer_launches_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    layer, x = randomized(lambda: XCiTLayer(32, 2, 1.0)).cuda(), tokens(2, 6, 32).cuda()
    launches = counted(monkeypatch)
    with kernels.forced("triton"):
        torch.compile(layer, fullgraph=True)(x, (2, 3)).sum().backward()
    assert not launches


@runs
@pytest.mark.parametrize("frozen", ["norm2", "mlp.fc1", "mlp.fc2", "local_mp.conv1", "norm3", "attn.qkv"])
def test_a_layer_of_which_a_part_is_frozen(frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        hand_over(monkeypatch)
    module, x = randomized(Layer).to(DEVICE), tokens(2, 6, 32).to(DEVICE)
    module.layer.get_submodule(frozen).requires_grad_(False)

    def gradients(kind: kernels.Kernels, dtype: torch.dtype) -> dict[str, Tensor]:
        copy = deepcopy(module).to(dtype)
        copy(x.to(dtype), kind).square().sum().backward()
        return {name: parameter.grad for name, parameter in copy.named_parameters() if parameter.grad is not None}

    exact, plain = (gradients("plain", dtype) for dtype in (torch.float64, torch.float32))
    fast = gradients("triton", torch.float32)
    # Cancellation differs between parameters, so the error of the plain form in fp32 is the scale.
    assert max(difference(exact, fast).values()) < 4 * max(difference(exact, plain).values()) + 1e-6


@pytest.fixture
def small_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the check, because the interpreter takes a minute for all of it."""
    if INTERPRETED:
        hand_over(monkeypatch, lambda x: kernels.forced_kernels() == "triton")
        monkeypatch.setattr(self_check, "SHAPES", ((16, (3, 2)),))


@runs
@pytest.mark.usefixtures("small_check")
def test_the_kernels_agree_with_torch(recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPUs' generators are the run's"))
    before = torch.get_rng_state()
    launches = counted(monkeypatch)
    with torch.inference_mode():
        assert self_check.agrees(torch.device(DEVICE))
    assert torch.equal(torch.get_rng_state(), before)
    assert not [warning for warning in recwarn if "Triton" in str(warning.message)]
    assert min(launches.values()) > 3 and len(launches) == 4


def fails(*given: Any) -> Any:
    raise AssertionError


def fails_at_length(*given: Any) -> Any:
    raise RuntimeError("no compiler\nand much more")


def wrong_by_a_fifth(*given: Any) -> Any:
    grad_taps, grad_inside = triton_depthwise.sums_over_taps(*given)
    return 0.8 * grad_taps, grad_inside


def not_a_number(*given: Any) -> Any:
    return tuple(torch.nan * sums for sums in triton_depthwise.sums_over_taps(*given))


@runs
@pytest.mark.usefixtures("small_check")
@pytest.mark.parametrize(
    ("name", "fault", "message"),
    [
        ("sums_over_taps", wrong_by_a_fifth, r"\S+ is off by \d+.\d% in float32"),
        ("sums_over_taps", not_a_number, r"\S+ is off by nan% in float32"),
        ("convolve", fails, r"AssertionError: "),
        ("convolve", fails_at_length, r"RuntimeError: no compiler"),
    ],
)
def test_kernels_that_are_wrong_or_do_not_run_cause_a_warning(
    name: str, fault: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_local_patch, name, fault)
    ending = r"using PyTorch operations instead \(torch .+, triton .+\)"
    line = rf"^Triton kernels failed the self-check on \w+ \({message}\); {ending}$"
    with pytest.warns(UserWarning, match=line):
        assert not self_check.agrees(torch.device(DEVICE))
