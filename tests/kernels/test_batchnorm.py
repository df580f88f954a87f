"""The stem's BatchNorm with its GELU: the C++ kernels agree with torch, and run exactly when they can."""

import pickle
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit.kernels import batchnorm_gelu, forced
from xcit.kernels.batchnorm import batchnorm_gelu_backward, moments, normalize_gelu
from xcit.kernels.cpu import library
from xcit.models.fast.training import fuse_for_training
from xcit.models.patch_embed import ConvPatchEmbed

FUNCTIONS = ["moments", "batchnorm_gelu", "batchnorm_gelu_backward"]

compiled = pytest.mark.skipif(library.LIBRARY is None, reason="nothing was compiled for this CPU")


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image(*shape: int, seed: int = 1) -> Tensor:
    return normal(*shape, seed=seed).contiguous(memory_format=torch.channels_last)


def batchnorm(channels: int, **options: object) -> nn.BatchNorm2d:
    bn = nn.BatchNorm2d(channels, **options)
    with torch.no_grad():
        bn.weight.copy_(torch.linspace(-1, 2, channels))
        bn.bias.copy_(torch.linspace(1, -1, channels))
    return bn


def uncounted() -> nn.BatchNorm2d:
    bn = batchnorm(16)
    bn.num_batches_tracked = None
    return bn


def outcome(function: Callable[[Tensor, nn.Module], Tensor], x: Tensor, bn: nn.Module) -> dict[str, Tensor]:
    """All results of a training step, by name."""
    x, bn = x.clone().requires_grad_(), deepcopy(bn)
    y = function(x, bn)
    y.backward(image(*y.shape, seed=2).to(y.dtype))
    assert x.grad is not None
    gradients = {name: parameter.grad for name, parameter in bn.named_parameters()}
    return {"output": y.detach(), "input": x.grad} | gradients | dict(bn.named_buffers())


def plain(x: Tensor, bn: nn.Module) -> Tensor:
    return F.gelu(bn(x))


@compiled
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [(6, 48, 9, 7), (2, 16, 40, 41), (1, 32, 1, 2), (3, 192, 5, 5), (2, 8192, 3, 3)])
def test_values_gradients_and_statistics(calls: list[str], shape: tuple[int, ...]) -> None:
    """Errors against torch in fp64 are like those of torch in fp32."""
    x, bn = 3 * image(*shape) + 1, batchnorm(shape[1])
    found = outcome(batchnorm_gelu, x, bn)
    assert calls == FUNCTIONS
    torchs, exact = outcome(plain, x, bn), outcome(plain, x.double(), deepcopy(bn).double())
    assert found["output"].stride() == torchs["output"].stride()
    for name, value in exact.items():
        size = value.double().norm() + 1e-12
        error, torchs_error = ((one[name].double() - value.double()).norm() / size for one in (found, torchs))
        assert error < 4 * torchs_error + 1e-6, name


@compiled
def test_moments_of_what_lies_far_from_zero() -> None:
    x = 1000 + normal(5000, 32)
    mean, var = moments(x)
    torch.testing.assert_close(mean.double(), x.double().mean(0), rtol=3e-7, atol=0)
    torch.testing.assert_close(var.double(), x.double().var(0, correction=0), rtol=3e-5, atol=0)


@compiled
def test_each_kernel_agrees_with_torch(calls: list[str]) -> None:
    """In fp64 torch's operations run."""
    x, gradient = normal(3, 7, 48), normal(3, 7, 48, seed=2)
    scale, shift = torch.linspace(-1, 2, 48), torch.linspace(1, -1, 48)

    def outcomes(dtype: torch.dtype) -> list[Tensor]:
        of, by, a, b = (t.to(dtype) for t in (x, gradient, scale, shift))
        mean, var = moments(of)
        y = normalize_gelu(of, mean, a, b)
        return [mean, var, y, *batchnorm_gelu_backward(by, of, mean, (var + 1e-5).rsqrt(), a, b)]

    exacts = outcomes(torch.float64)
    assert calls == []
    for found, exact in zip(outcomes(torch.float32), exacts, strict=True):
        assert (found.double() - exact).norm() <= 1e-6 * exact.norm()
    assert calls == FUNCTIONS


@compiled
def test_a_channel_that_is_the_same_everywhere() -> None:
    x, bn = torch.full((3, 16, 4, 4), 7.0).contiguous(memory_format=torch.channels_last), batchnorm(16)
    found = outcome(batchnorm_gelu, x, bn)
    torch.testing.assert_close(found["output"], F.gelu(bn.bias)[:, None, None].expand(x.shape))
    assert all(value.isfinite().all() for value in found.values())


@compiled
def test_running_statistics_are_torchs() -> None:
    for options in ({}, {"momentum": None}, {"momentum": 0.4, "eps": 0.1}):
        ours, torchs = batchnorm(16, **options), batchnorm(16, **options)
        for seed in range(3):
            x = image(2, 16, 5, 5, seed=seed)
            torch.testing.assert_close(batchnorm_gelu(x, ours), plain(x, torchs))
        for name, value in torchs.named_buffers():
            torch.testing.assert_close(ours.get_buffer(name), value)


@pytest.mark.parametrize(
    ("x", "bn"),
    [
        (image(2, 24, 5, 5), batchnorm(24)),
        (normal(2, 16, 5, 5), batchnorm(16)),
        (normal(2, 5, 16, 5).permute(0, 2, 3, 1), batchnorm(16)),
        (image(2, 16, 5, 5).double(), batchnorm(16).double()),
        (image(2, 16, 5, 5), batchnorm(16).eval()),
        (image(2, 16, 5, 5), nn.BatchNorm2d(16, affine=False)),
        (image(2, 16, 5, 5), nn.BatchNorm2d(16, track_running_stats=False)),
        (image(2, 16, 5, 5), nn.InstanceNorm2d(16, affine=True)),
        (image(2, 16, 5, 5), uncounted()),
    ],
    ids=[
        "no whole tile",
        "channels first",
        "rows last",
        "fp64",
        "evaluation",
        "no affine",
        "no statistics",
        "another norm",
        "no count",
    ],
)
def test_torch_runs_where_they_cannot(calls: list[str], x: Tensor, bn: nn.Module) -> None:
    found, expected = outcome(batchnorm_gelu, x, bn), outcome(plain, x, bn)
    assert calls == []
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_one_value_per_channel_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batchnorm_gelu(image(1, 16, 1, 1), batchnorm(16))


@compiled
@pytest.mark.parametrize("what", ["gradient", "saved"])
def test_torch_runs_backward_where_the_kernel_cannot(calls: list[str], what: str) -> None:
    """torch's operations run for batched gradients, and if hooks change the strides of saved tensors."""
    x, bn = image(2, 16, 5, 5).requires_grad_(), batchnorm(16)
    if what == "gradient":
        y = batchnorm_gelu(x, bn)
        gradients = torch.stack([torch.ones_like(y), y.detach()])
        (found,) = torch.autograd.grad(y, x, gradients, is_grads_batched=True, retain_graph=True)
        expected = torch.stack([torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in gradients])
        assert calls == FUNCTIONS[:2] + FUNCTIONS[2:] * 2
    else:
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: t, lambda t: t.mT.contiguous().mT if t.dim() > 1 else t
        ):
            y = batchnorm_gelu(x, bn)
        (found,) = torch.autograd.grad(y.square().sum(), x)
        assert calls == FUNCTIONS[:2]
        (expected,) = torch.autograd.grad(batchnorm_gelu(x, bn).square().sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@compiled
def test_any_gradient_will_do(calls: list[str]) -> None:
    x, bn = image(2, 16, 5, 5).requires_grad_(), batchnorm(16)
    (found,) = torch.autograd.grad(batchnorm_gelu(x, bn).sum(), x)  # the gradient of a sum is one number, expanded
    assert calls == FUNCTIONS
    torch.testing.assert_close(found, torch.autograd.grad(plain(x, bn).sum(), x)[0], rtol=1e-4, atol=1e-5)


@compiled
def test_nan_stays_nan() -> None:
    x = image(2, 16, 5, 5)
    x[1, 3, 2, 2] = torch.nan
    bad = batchnorm_gelu(x, batchnorm(16)).isnan().flatten(2).any(-1).any(0)
    assert bad.tolist() == [channel == 3 for channel in range(16)]


@compiled
def test_statistics_move_also_without_gradients(calls: list[str]) -> None:
    x, bn, torchs = image(2, 16, 5, 5), batchnorm(16), batchnorm(16)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            torch.testing.assert_close(batchnorm_gelu(x, bn), plain(x, torchs))
    assert calls == FUNCTIONS[:2] * 2
    torch.testing.assert_close(bn.running_var, torchs.running_var)
    assert bn.num_batches_tracked == 2


@compiled
def test_frozen_parameters_and_inputs() -> None:
    for frozen in ("input", "weight", "bias"):
        x, bn = image(2, 16, 5, 5), batchnorm(16)
        x.requires_grad_(frozen != "input")
        bn.weight.requires_grad_(frozen != "weight")
        bn.bias.requires_grad_(frozen != "bias")
        wanted = [tensor for tensor in (x, bn.weight, bn.bias) if tensor.requires_grad]
        found, torchs = (torch.autograd.grad(f(x, bn).square().sum(), wanted) for f in (batchnorm_gelu, plain))
        torch.testing.assert_close(found, torchs, rtol=1e-4, atol=1e-4)


def test_parameters_of_another_width_are_refused(calls: list[str]) -> None:
    bn = batchnorm(32)
    bn.bias = nn.Parameter(torch.zeros(16))
    with pytest.raises(RuntimeError, match="32 elements"):
        batchnorm_gelu(image(2, 32, 5, 5), bn)
    assert calls == []


def stem_and_images() -> tuple[ConvPatchEmbed, Tensor]:
    torch.manual_seed(0)
    return fuse_for_training(ConvPatchEmbed(8, 3, 64)), image(4, 3, 24, 32)


@compiled
def test_a_synchronized_batchnorm_is_called(calls: list[str]) -> None:
    stem, images = stem_and_images()
    stem = nn.SyncBatchNorm.convert_sync_batchnorm(stem)
    outcome(lambda x, stem: stem(x), images, stem)
    assert calls == []


@compiled
def test_the_stem_under_autocast_and_compiled(calls: list[str]) -> None:
    stem, images = stem_and_images()
    expected = outcome(lambda x, stem: stem(x), images, stem)
    calls.clear()
    found = outcome(lambda x, stem: torch.compile(stem, fullgraph=True)(x), images, stem)
    assert calls == []
    for name, value in expected.items():
        assert (found[name] - value).double().norm() <= 1e-5 * value.double().norm(), name
    with torch.autocast("cpu", torch.bfloat16):
        assert stem(images).dtype == torch.bfloat16
    assert calls == []


@compiled
def test_a_stem_from_an_older_file_runs_as_it_is(calls: list[str]) -> None:
    stem, images = stem_and_images()
    expected = stem(images)
    assert calls
    calls.clear()
    copy = pickle.loads(pickle.dumps(stem))
    torch.testing.assert_close(copy(images), expected)
    assert calls
    calls.clear()
    del copy.original_parts
    torch.testing.assert_close(copy(images), expected)
    assert calls == []


@compiled
def test_the_stem_by_both_forms(calls: list[str]) -> None:
    stem, images = stem_and_images()
    with forced("plain"):
        expected = outcome(lambda x, stem: stem(x), images, stem)
    assert calls == []
    found = outcome(lambda x, stem: stem(x), images, stem)
    assert calls == ["moments", "batchnorm_gelu"] * 2 + ["batchnorm_gelu_backward"] * 2
    for name, value in expected.items():
        assert (found[name] - value).double().norm() <= 1e-5 * value.double().norm(), name
    stem.proj[1].register_forward_hook(lambda module, inputs, output: calls.append("heard"))
    calls.clear()
    stem(images)
    assert calls == ["heard"]
