"""Local patch interaction in C++: the kernels agree with torch, and run exactly when they can."""

import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from xcit.kernels import add_folded_local_patch, add_local_patch, dispatch
from xcit.kernels.cpu import library, local_patch
from xcit.kernels.local_patch import torch_backward
from xcit.models.layer import XCiTLayer

from .test_layers import randomized, tokens

FORWARD, BACKWARD = ["norm_depthwise", "gelu_affine_depthwise"], ["gelu_affine_sums", "local_patch_backward"]

compiled = pytest.mark.skipif(library.LIBRARY is None, reason="nothing was compiled for this CPU")
shapes = pytest.mark.parametrize(  # B, H, W, C
    "shape",
    [(2, 5, 7, 48), (1, 9, 4, 32), (3, 1, 6, 16), (2, 6, 1, 64), (1, 1, 2, 16), (4, 2, 2, 512), (3, 14, 14, 128)],
)


def layer_of(dim: int) -> XCiTLayer:
    layer = randomized(lambda: XCiTLayer(dim, 2, 1.0))
    assert isinstance(layer, XCiTLayer)
    return layer


def interact(layer: XCiTLayer, x: Tensor, grid: tuple[int, int], keep_scale: Tensor | None = None) -> Tensor:
    local = layer.local_mp
    assert local is not None
    return add_local_patch(x, layer.norm3, local.conv1, local.bn, local.conv2, layer.gamma3, grid, keep_scale)


def plain(layer: XCiTLayer, x: Tensor, grid: tuple[int, int], keep_scale: Tensor | None = None) -> Tensor:
    assert layer.local_mp is not None
    branch = layer.gamma3 * layer.local_mp(layer.norm3(x), grid)
    return x + (branch if keep_scale is None else keep_scale[:, None, None] * branch)


def folded(layer: XCiTLayer, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The folded form, given x as a sum of two parts. The layer must be in evaluation mode."""
    part = torch.linspace(-1, 1, x.shape[1])[:, None] * x
    local, scale = layer.local_mp, layer.gamma3
    assert local is not None and isinstance(local.bn, nn.BatchNorm2d) and local.conv2.bias is not None
    assert local.bn.running_var is not None and local.bn.running_mean is not None and local.conv1.bias is not None
    slope = local.bn.weight * (local.bn.running_var + local.bn.eps).rsqrt()
    second = scale[:, None, None, None] * local.conv2.weight, scale * local.conv2.bias
    first, shift = (local.conv1.weight, local.conv1.bias), local.bn.bias - local.bn.running_mean * slope
    return add_folded_local_patch(x - part, part, layer.norm3, first, slope, shift, second, grid)


def outcome(form: object, layer: nn.Module, x: Tensor, *others: object) -> dict[str, Tensor]:
    """All results of a training step, by name."""
    layer, x = deepcopy(layer), x.clone().requires_grad_()
    assert callable(form)
    y = form(layer, x, *others)
    y.backward(tokens(*y.shape, seed=2).to(y.dtype))
    assert x.grad is not None
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters() if parameter.grad is not None}
    assert len(gradients) == 9  # two norms, two convolutions and the scale
    return {"output": y.detach(), "input": x.grad} | gradients | dict(layer.named_buffers())


def assert_as_near_as_torch(found: dict[str, Tensor], torchs: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    assert list(found) == list(exact)
    for name, value in exact.items():
        size = value.double().norm() + 1e-12
        error, torchs_error = ((one[name].double() - value.double()).norm() / size for one in (found, torchs))
        assert error < 4 * torchs_error + 1e-6, name


@compiled
@shapes
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dropped", [False, True])
def test_values_gradients_and_statistics(calls: list[str], shape: tuple[int, ...], dropped: bool) -> None:
    """Errors against the model in fp64 are like those of the model in fp32, also for an image in several bands."""
    B, H, W, C = shape
    layer, x = layer_of(C), 3 * tokens(B, H * W, C) + 1
    keep_scale = torch.linspace(0, 2, B) if dropped else None
    found = outcome(interact, layer, x, (H, W), keep_scale)
    assert calls == FORWARD + BACKWARD
    torchs = outcome(plain, layer, x, (H, W), keep_scale)
    in_fp64 = keep_scale if keep_scale is None else keep_scale.double()
    exact = outcome(plain, deepcopy(layer).double(), x.double(), (H, W), in_fp64)
    assert_as_near_as_torch(found, torchs, exact)


@compiled
@shapes
@pytest.mark.usefixtures("threads")
def test_the_folded_form(calls: list[str], shape: tuple[int, ...]) -> None:
    B, H, W, C = shape
    layer, x = layer_of(C), 3 * tokens(B, H * W, C) + 1
    plain(layer, x, (H, W))  # updates the running statistics
    with torch.no_grad():
        found = folded(layer.eval(), x, (H, W))
        assert calls == ["local_patch"]
        expected = plain(deepcopy(layer).double(), x.double(), (H, W))
    assert (found.double() - expected).norm() < 3e-7 * expected.norm()


@compiled
def test_the_backward_pass_agrees_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, keep_scale = layer_of(48), tokens(3, 20, 48), torch.tensor([1.0, 0.0, 2.0])
    found = outcome(interact, layer, x, (4, 5), keep_scale)
    monkeypatch.setattr("xcit.kernels.local_patch.local_patch_backward", torch_backward)
    for name, value in outcome(interact, layer, x, (4, 5), keep_scale).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


@compiled
def test_gelu_statistics_of_what_lies_far_from_zero() -> None:
    """A large bias of the convolution must not make the variance inexact."""
    layer, x = layer_of(32), 1e-2 * tokens(4, 30, 32)
    local = layer.local_mp
    assert local is not None and local.conv1.bias is not None
    with torch.no_grad():
        local.conv1.bias += 300
    inputs = x, layer.norm3.weight, layer.norm3.bias, layer.norm3.eps, local.conv1.weight, local.conv1.bias, (5, 6)
    with torch.no_grad():
        y, *_, mean, variance = local_patch.norm_depthwise_statistics(*inputs)
    torch.testing.assert_close(mean.double(), y.double().flatten(0, 1).mean(0), rtol=3e-7, atol=0)
    torch.testing.assert_close(variance.double(), y.double().flatten(0, 1).var(0, correction=0), rtol=1e-4, atol=0)


@compiled
def test_a_channel_that_is_the_same_everywhere() -> None:
    layer, x = layer_of(16), tokens(2, 12, 16)
    assert layer.local_mp is not None
    with torch.no_grad():
        layer.local_mp.conv1.weight.zero_()
    found = outcome(interact, layer, x, (3, 4))
    expected = outcome(plain, layer, x, (3, 4))["output"]  # rstd is 316 there, which multiplies errors
    torch.testing.assert_close(found["output"], expected, rtol=1e-4, atol=1e-4)
    assert all(value.isfinite().all() for value in found.values())


@compiled
def test_running_statistics_are_torchs() -> None:
    for options in ({}, {"momentum": None}, {"momentum": 0.4, "eps": 0.1}):
        ours = layer_of(16)
        assert ours.local_mp is not None
        ours.local_mp.bn = nn.BatchNorm2d(16, **options)
        torchs = deepcopy(ours)
        for seed in range(3):
            x = tokens(2, 12, 16, seed=seed)
            torch.testing.assert_close(interact(ours, x, (3, 4)), plain(torchs, x, (3, 4)), rtol=1e-4, atol=1e-5)
        for name, value in torchs.named_buffers():
            torch.testing.assert_close(ours.get_buffer(name), value)


class Other(nn.BatchNorm2d):
    pass


@pytest.mark.parametrize("case", ["no whole tile", "fp64", "bf16", "evaluation", "another norm", "no kernels"])
def test_torch_runs_where_they_cannot(calls: list[str], case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = layer_of(24 if case == "no whole tile" else 16), tokens(2, 12, 24 if case == "no whole tile" else 16)
    assert layer.local_mp is not None
    if case in ("fp64", "bf16"):
        dtype = torch.float64 if case == "fp64" else torch.bfloat16
        layer, x = layer.to(dtype), x.to(dtype)
    if case == "evaluation":
        layer.eval()
    if case == "another norm":
        layer.local_mp.bn = Other(16)
    if case == "no kernels":
        monkeypatch.setattr(dispatch, "has_cpp", False)
    found, expected = (outcome(form, layer, x, (3, 4)) for form in (interact, plain))
    assert not [name for name in calls if "depthwise" in name or name in BACKWARD]
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        assert (found[name] - value).double().norm() <= (0.05 if case == "bf16" else 1e-5) * value.double().norm(), name


@pytest.mark.parametrize(
    "keep_scale", [torch.tensor([2.0, 0.5]).double(), torch.tensor([2.0, 0.5]).bfloat16(), torch.ones(1)]
)
def test_torch_takes_a_keep_scale_of_another_type_or_number(calls: list[str], keep_scale: Tensor) -> None:
    layer, x = layer_of(16), tokens(2, 12, 16)
    found, expected = (outcome(form, layer, x, (3, 4), keep_scale.to(x.dtype)) for form in (interact, plain))
    other = outcome(interact, layer, x, (3, 4), keep_scale)
    torch.testing.assert_close(found["output"], expected["output"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other["output"], expected["output"], rtol=1e-4, atol=1e-4, check_dtype=False)


@pytest.mark.parametrize("grid", [(3, 5), (3, 3), (1, 11)])
@pytest.mark.parametrize("form", [interact, folded, torch.compile(interact, backend="aot_eager")])
def test_a_grid_of_another_number_of_tokens(
    calls: list[str], form: Callable[..., Tensor], grid: tuple[int, int]
) -> None:
    """torch raises an error. The kernels would read outside their memory."""
    layer = layer_of(16).train(form is not folded)
    with pytest.raises(RuntimeError, match=r"unflatten|sizes"), torch.set_grad_enabled(form is not folded):
        form(layer, tokens(2, 12, 16), grid)
    assert calls == []


@pytest.mark.parametrize("form", [interact, folded])
def test_a_norm_of_other_channels(calls: list[str], form: Callable[..., Tensor]) -> None:
    layer = layer_of(32).train(form is interact)
    layer.norm3 = nn.LayerNorm(16)
    with pytest.raises(RuntimeError, match="normalized_shape"), torch.set_grad_enabled(form is interact):
        form(layer, tokens(2, 12, 32), (3, 4))
    assert calls == []


@compiled
def test_compiled_code_calls_the_kernels(calls: list[str]) -> None:
    layer, x = layer_of(32), tokens(3, 12, 32)
    expected = outcome(interact, layer, x, (3, 4), torch.tensor([0.5, 1.0, 2.0]))
    calls.clear()
    torch._dynamo.reset()  # dynamo skips a function that failed before, as it does for another grid
    whole = torch.compile(interact, fullgraph=True)
    found = outcome(whole, layer, x, (3, 4), torch.tensor([0.5, 1.0, 2.0]))
    assert calls == FORWARD + BACKWARD
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@compiled
def test_the_operators_are_as_their_fakes_say() -> None:
    ops, grid = torch.ops.xcit, (3, 4)
    x, weight = tokens(2, 12, 16), tokens(16, 1, 3, 3)
    strided, one, of_token = x.mT.contiguous().mT, torch.linspace(0.5, 1, 16), tokens(2, 12).square() + 1
    for keep_scale in (None, torch.ones(2)):
        torch.library.opcheck(ops.gelu_affine_depthwise.default, (x, one, one, weight, one, strided, keep_scale, grid))
        norm, bn = (strided, of_token, of_token, one, one, weight), (x, one, one, one, one, weight)
        torch.library.opcheck(ops.local_patch_backward.default, (x, keep_scale, *norm, *bn, grid))
    torch.library.opcheck(ops.norm_depthwise_statistics.default, (strided, one, one, 1e-6, weight, one, grid))
    folded_arguments = (strided, x, one, one, 1e-6, weight, one, one, one, weight, one, grid)
    torch.library.opcheck(ops.folded_local_patch.default, folded_arguments)


@compiled
def test_they_stay_in_fp32_under_autocast(calls: list[str]) -> None:
    layer, x = layer_of(16), tokens(2, 12, 16)
    expected = outcome(interact, layer, x, (3, 4))
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(interact, layer, x, (3, 4))
        folded(layer.eval(), x, (3, 4))
    assert calls == [*FORWARD, *BACKWARD, *FORWARD, *BACKWARD, "local_patch"]
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@compiled
def test_gradients_that_are_mapped_over_are_refused(calls: list[str]) -> None:
    """torch raises an error for batched gradients, and the C++ kernels are not called with them."""
    x = tokens(2, 12, 16).requires_grad_()
    y = interact(layer_of(16), x, (3, 4))
    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        torch.autograd.grad(y, x, torch.stack([torch.ones_like(y), y.detach()]), is_grads_batched=True)
    assert not set(calls) & set(BACKWARD)


@compiled
def test_strides_do_not_matter(calls: list[str]) -> None:
    """Other strides of the tokens, of the gradient (that of a sum is expanded), and of saved tensors."""
    layer, x = layer_of(16), tokens(2, 12, 16)
    expected = outcome(plain, layer, x, (3, 4))["output"]
    strided = x.mT.contiguous().mT.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.mT.contiguous().mT if t.dim() > 1 else t):
        y = interact(deepcopy(layer), strided, (3, 4))
        torch.testing.assert_close(y, expected)
        (found,) = torch.autograd.grad(y.sum(), strided)
    assert calls == FORWARD + BACKWARD
    x.requires_grad_()
    torch.testing.assert_close(found, torch.autograd.grad(plain(layer, x, (3, 4)).sum(), x)[0], rtol=1e-4, atol=1e-5)


@compiled
def test_nan_stays_nan() -> None:
    layer, x = layer_of(16).eval(), tokens(2, 25, 16)
    x[1, 12, 3] = torch.nan
    with torch.no_grad():
        bad = folded(layer, x, (5, 5)).isnan().any(-1)
    assert bad[1].all() and not bad[0].any()  # two convolutions reach two places
    bad = interact(layer.train(), x, (5, 5)).isnan()
    assert bad.all()  # through BatchNorm


@compiled
def test_frozen_parts_and_no_gradients(calls: list[str]) -> None:
    layer, x = layer_of(16), tokens(2, 12, 16)
    expected = outcome(plain, layer, x, (3, 4))
    assert layer.local_mp is not None
    layer.local_mp.conv1.requires_grad_(False)
    interact(layer, x, (3, 4)).backward(tokens(2, 12, 16, seed=2))
    assert layer.local_mp.conv1.weight.grad is None and layer.local_mp.conv2.weight.grad is not None
    torch.testing.assert_close(
        layer.local_mp.conv2.weight.grad, expected["local_mp.conv2.weight"], rtol=1e-4, atol=1e-4
    )
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            torch.testing.assert_close(interact(layer, x, (3, 4)), expected["output"], rtol=1e-4, atol=1e-5)
    assert calls == FORWARD + BACKWARD + FORWARD * 2


def test_one_value_per_channel_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        interact(layer_of(16), tokens(1, 1, 16), (1, 1))


def test_all_functions_are_loaded() -> None:
    """library.py names every function of the C++ files."""
    sources = Path(library.__file__).parent.glob("*.cpp")
    found = {name for path in sources for name in re.findall(r'extern "C" void (\w+)\(', path.read_text())}
    assert found == set(library.FUNCTIONS)
