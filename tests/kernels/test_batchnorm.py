"""The stem's BatchNorm with its GELU: the passes find what torch finds, run where they can, and leave the rest."""

from collections.abc import Callable, Iterator
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit.kernels import batchnorm_gelu, forced, passes
from xcit.kernels.passes import moments_pass
from xcit.models.patch_embed import ConvPatchEmbed

PASSES = ["moments", "batchnorm_gelu", "batchnorm_gelu_gradient"]

compiled = pytest.mark.skipif(passes.LIBRARY is None, reason="nothing was compiled for this CPU")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passes that are called."""
    names: list[str] = []
    call = passes.call
    monkeypatch.setattr(passes, "call", lambda name, *arguments: names.append(name) or call(name, *arguments))
    return names


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


def outcome(function: Callable[[Tensor, nn.Module], Tensor], x: Tensor, bn: nn.Module) -> dict[str, Tensor]:
    """Everything that a training step finds, by name."""
    x, bn = x.clone().requires_grad_(), deepcopy(bn)
    y = function(x, bn)
    y.backward(image(*y.shape, seed=2).to(y.dtype))
    assert x.grad is not None
    gradients = {name: parameter.grad for name, parameter in bn.named_parameters()}
    return {"output": y.detach(), "input": x.grad} | gradients | dict(bn.named_buffers())


def plain(x: Tensor, bn: nn.Module) -> Tensor:
    return F.gelu(bn(x))


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@compiled
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [(6, 48, 9, 7), (2, 16, 40, 41), (1, 32, 1, 2), (3, 192, 5, 5), (2, 8192, 3, 3)])
def test_values_gradients_and_statistics(calls: list[str], shape: tuple[int, ...]) -> None:
    """As near to torch in fp64 as torch in fp32 is."""
    x, bn = 3 * image(*shape) + 1, batchnorm(shape[1])
    found = outcome(batchnorm_gelu, x, bn)
    assert calls == PASSES
    torchs, exact = outcome(plain, x, bn), outcome(plain, x.double(), deepcopy(bn).double())
    assert found["output"].stride() == torchs["output"].stride()
    for name, value in exact.items():
        size = value.double().norm() + 1e-12
        error, torchs_error = ((one[name].double() - value.double()).norm() / size for one in (found, torchs))
        assert error < 4 * torchs_error + 1e-6, name


@compiled
def test_moments_of_what_lies_far_from_zero() -> None:
    x = 1000 + normal(5000, 32)
    mean, var = moments_pass(x)
    torch.testing.assert_close(mean.double(), x.double().mean(0), rtol=3e-7, atol=0)
    torch.testing.assert_close(var.double(), x.double().var(0, correction=0), rtol=3e-5, atol=0)


@compiled
def test_a_channel_that_is_the_same_everywhere() -> None:
    x, bn = torch.full((3, 16, 4, 4), 7.0).contiguous(memory_format=torch.channels_last), batchnorm(16)
    found = outcome(batchnorm_gelu, x, bn)
    torch.testing.assert_close(found["output"], F.gelu(bn.bias)[:, None, None].expand(x.shape))
    assert all(value.isfinite().all() for value in found.values())


@compiled
def test_batches_are_counted_as_torch_counts_them() -> None:
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
    ],
)
def test_torch_runs_where_they_cannot(calls: list[str], x: Tensor, bn: nn.Module) -> None:
    found, expected = outcome(batchnorm_gelu, x, bn), outcome(plain, x, bn)
    assert calls == []
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_one_value_a_channel_is_complained_of() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batchnorm_gelu(image(1, 16, 1, 1), batchnorm(16))


@compiled
def test_the_stem_by_both_forms(calls: list[str]) -> None:
    torch.manual_seed(0)
    stem, images = ConvPatchEmbed(8, 3, 64), image(4, 3, 24, 32)
    with forced("plain"):
        expected = outcome(lambda x, stem: stem(x), images, stem)
    assert calls == []
    found = outcome(lambda x, stem: stem(x), images, stem)
    assert calls == ["moments", "batchnorm_gelu"] * 2 + ["batchnorm_gelu_gradient"] * 2
    for name, value in expected.items():
        assert (found[name] - value).double().norm() <= 1e-5 * value.double().norm(), name
    stem.proj[1].register_forward_hook(lambda module, inputs, output: calls.append("heard"))
    calls.clear()
    stem(images)
    assert calls == ["heard"]
