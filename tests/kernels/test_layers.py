"""The fast form of a layer agrees with its plain form: in values, gradients and BatchNorm statistics."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from xcit import kernels
from xcit.kernels import dispatch, forced
from xcit.kernels.covariance import is_cheaper
from xcit.kernels.cpu import library
from xcit.kernels.depthwise import as_map, as_tokens
from xcit.models.class_attention import ClassAttention
from xcit.models.fast.checkpointing import checkpointed
from xcit.models.fast.training import fuse_for_training
from xcit.models.layer import XCiTLayer

GRID = (4, 5)
Forward = Callable[[nn.Module, Tensor], Tensor]


def randomized(make: Callable[[], nn.Module]) -> nn.Module:
    """A module without parameters that are 0 or 1, because those would hide errors."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = fuse_for_training(make())
        for parameter in layer.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return layer


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def xcit_layer() -> tuple[nn.Module, Tensor, Forward]:
    return randomized(lambda: XCiTLayer(48, 4, 1.0)), tokens(6, 20, 48), lambda layer, x: layer(x, GRID)


def whole_tiles() -> tuple[nn.Module, Tensor, Forward]:
    """A layer with widths that the C++ kernels accept."""
    return randomized(lambda: XCiTLayer(64, 4, 1.0)), tokens(6, 20, 64), lambda layer, x: layer(x, GRID)


def many_tokens() -> tuple[nn.Module, Tensor, Forward]:
    """Enough tokens for the covariance form of attention."""
    return randomized(lambda: XCiTLayer(16, 2, 1.0)), tokens(3, 80, 16), lambda layer, x: layer(x, (8, 10))


def class_attention() -> tuple[nn.Module, Tensor, Forward]:
    return randomized(lambda: ClassAttention(48, 4)), tokens(6, 21, 48), lambda layer, x: layer(x)


LAYERS = {
    "XCiTLayer": xcit_layer,
    "whole tiles": whole_tiles,
    "many tokens": many_tokens,
    "ClassAttention": class_attention,
}


def outcome(kind: kernels.Kernels, layer: nn.Module, x: Tensor, forward: Forward, autocast: bool = False) -> dict:
    """All results of a training step, by name."""
    layer, x = deepcopy(layer), x.clone().requires_grad_()
    with kernels.forced(kind), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = forward(layer, x)
    y.backward(tokens(*y.shape, seed=2).to(y.dtype))
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())  # DDP waits for every one
    return {"output": y.detach(), "input": x.grad} | gradients | dict(layer.named_buffers())


def difference(one: dict, other: dict) -> dict[str, float]:
    """The relative error of each entry. The keys' bias is left out: its gradient is nothing but rounding errors."""
    assert one.keys() == other.keys()
    scale = max(value.double().norm() for value in one.values())
    return {
        name: float((one[name].double() - other[name].double()).norm() / (one[name].double().norm() + 1e-6 * scale))
        for name in one
        if not name.endswith("k.bias")
    }


@pytest.mark.usefixtures("each_product_route")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-12), ("fp32", 1e-5), ("bf16", 0.03)])
@pytest.mark.parametrize("training", [True, False])
def test_values_and_gradients(name: str, precision: str, tolerance: float, training: bool) -> None:
    layer, x, forward = LAYERS[name]()
    layer.train(training)
    if precision == "fp64":
        layer, x = layer.double(), x.double()
    autocast = precision == "bf16"
    plain, fast = (outcome(kind, layer, x, forward, autocast) for kind in ("plain", "fast"))
    assert plain["output"].dtype == fast["output"].dtype
    if autocast:  # the plain form has errors of the same size
        plain = outcome("plain", layer, x, forward)
    assert max(difference(plain, fast).values()) < tolerance


@pytest.mark.skipif(library.LIBRARY is None, reason="nothing was compiled for this CPU")
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("images", [1, 6])
def test_a_layer_calls_what_was_compiled(monkeypatch: pytest.MonkeyPatch, calls: list[str], images: int) -> None:
    layer, x, run = whole_tiles()
    x = x[:images]
    compiled = outcome("fast", layer, x, run)
    forward = ["attend", "norm_depthwise", "gelu_affine_depthwise", "gelu"]
    local_patch = ["gelu_affine_sums", "local_patch_backward"]
    backward = ["gelu_backward", "layer_norm_backward", *local_patch, "attend_backward", "layer_norm_backward"]
    assert calls == [*forward, *backward]
    monkeypatch.setattr(dispatch, "has_cpp", False)
    assert max(difference(compiled, outcome("fast", layer, x, run)).values()) < 1e-5
    assert len(calls) == 10


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("in_cpp", [True, False])
def test_gradients_lie_as_their_parameters(monkeypatch: pytest.MonkeyPatch, in_cpp: bool, counts: bool) -> None:
    """If strides differ, DDP warns and copies gradients. counts: whether BatchNorm updates its statistics."""
    if not in_cpp:
        monkeypatch.setattr(dispatch, "has_cpp", False)
    layer, x, forward = whole_tiles()
    layer.local_mp.bn.train(counts)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    gradients = torch.autograd.grad(forward(layer, x).square().sum(), parameters)
    for name, gradient, parameter in zip(names, gradients, parameters, strict=True):
        assert gradient.stride() == parameter.stride(), name


@pytest.mark.parametrize("images", [1, 2])
def test_tokens_are_a_map_with_its_channels_last(images: int) -> None:
    """So a convolution copies neither its input nor its output."""
    x, conv = tokens(images, 20, 48), nn.Conv2d(48, 48, 3, padding=1, groups=48)
    image = as_map(x, GRID)
    assert image.data_ptr() == x.data_ptr() and torch.equal(image[:, :, 1, 2], x[:, 7])
    assert image.is_contiguous(memory_format=torch.channels_last)
    convolved = conv(image)
    assert as_tokens(convolved).is_contiguous() and as_tokens(convolved).data_ptr() == convolved.data_ptr()


@pytest.mark.parametrize("name", LAYERS)
def test_the_two_forms_are_two(name: str) -> None:
    """The graphs of the two forms differ; otherwise the comparison above would compare a form with itself."""
    layer, x, forward = LAYERS[name]()
    with kernels.forced("plain"):
        plain = forward(layer, x.requires_grad_())
    with kernels.forced("fast"):
        fast = forward(layer, x)
    assert graph(plain) != graph(fast)


def graph(output: Tensor) -> set[str]:
    return {type(node).__name__ for node in nodes(output)}


def nodes(output: Tensor) -> set[torch.autograd.graph.Node]:
    waiting, found = [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [following for following, _ in node.next_functions]
    return found


def is_fast(layer: nn.Module, x: Tensor) -> bool:
    return any(name.startswith("NormLinear") for name in graph(layer(x.requires_grad_(), GRID)))


@pytest.mark.parametrize("training", [True, False])
def test_the_form_of_attention_follows_the_number_of_tokens(training: bool) -> None:
    assert not is_cheaper(torch.empty(2, 196, 384), 8, training)
    assert is_cheaper(torch.empty(2, 2304, 384), 8, training)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_cheaper(torch.empty(2, 2304, 384), 8, training)


def test_the_covariance_form_is_the_one_that_runs() -> None:
    layer, x, forward = many_tokens()
    assert "CovarianceBackward" in graph(forward(layer, x.requires_grad_()))


def test_one_batch_after_another_counts_the_same_statistics() -> None:
    layer, _, _ = xcit_layer()
    statistics = []
    for kind in ("plain", "fast"):
        own = deepcopy(layer)
        with kernels.forced(kind):
            for seed in range(3):
                own(tokens(6, 20, 48, seed=seed), GRID)
        statistics.append(dict(own.local_mp.bn.named_buffers()))
    plain, fast = statistics
    assert all(torch.allclose(plain[name], fast[name], atol=1e-6) for name in plain)
    assert fast["num_batches_tracked"] == 3


class LoRA(nn.Linear):
    """A subclass of a linear layer."""


def test_what_somebody_listens_to_or_replaced_runs_as_it_is() -> None:
    layer, x, _ = xcit_layer()
    assert is_fast(layer, x)
    seen = []
    handle = layer.mlp.fc1.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    assert not is_fast(layer, x) and seen == [(6, 20, 192)]
    handle.remove()
    assert is_fast(layer, x)
    layer.attn.qkv = LoRA(48, 144)
    assert not is_fast(layer, x)


def test_whoever_takes_a_place_is_noticed() -> None:
    """A `forward` set on a module, and hooks for all modules, such as those of torch's FLOP counter, are called."""
    layer, x, _ = xcit_layer()
    layer.mlp.fc1.forward = lambda t: torch.zeros(*t.shape[:-1], 192)
    assert not is_fast(layer, x)
    del layer.mlp.fc1.forward
    assert is_fast(layer, x)
    with FlopCounterMode(display=False) as counted:
        layer(x, GRID)
    with forced("plain"), FlopCounterMode(display=False) as expected:
        layer(x, GRID)
    assert counted.get_total_flops() == expected.get_total_flops()
    assert is_fast(layer, x)


@pytest.mark.parametrize(
    "part",
    [
        ("mlp.act", nn.ReLU()),
        ("mlp.act", nn.GELU("tanh")),
        ("mlp.act", nn.Sequential(nn.GELU(), nn.Dropout(0.9))),
        ("mlp", nn.Sequential(nn.Linear(48, 48), nn.ReLU())),
        ("attn", nn.Linear(48, 48)),
        ("attn.qkv", nn.Linear(48, 144, bias=False)),
        ("local_mp.act", nn.ReLU()),
        ("local_mp.conv1", nn.Conv2d(48, 48, 5, padding=2, groups=48)),
        ("local_mp.conv2", nn.Conv2d(48, 48, 3, padding=1, groups=48, padding_mode="reflect")),
        ("norm2", nn.LayerNorm(48, elementwise_affine=False)),
        ("norm1", nn.Identity()),
    ],
    ids=lambda part: f"{part[0]}={type(part[1]).__name__}",
)
def test_another_part_in_a_place_is_used(part: tuple[str, nn.Module]) -> None:
    layer, x, _ = xcit_layer()
    layer.set_submodule(*part)
    layer(x, GRID)
    assert not is_fast(layer, x)


@pytest.mark.parametrize("bn", [nn.BatchNorm2d(48, affine=False), nn.BatchNorm2d(48, track_running_stats=False)])
def test_another_batchnorm_is_called_as_it_is(bn: nn.Module) -> None:
    layer, x, forward = xcit_layer()
    layer.local_mp.bn = bn
    plain, fast = (outcome(kind, layer, x, forward) for kind in ("plain", "fast"))
    assert max(difference(plain, fast).values()) < 1e-5


def test_batchnorm_refuses_one_value_per_channel() -> None:
    layer, _, _ = xcit_layer()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(tokens(1, 1, 48), (1, 1))
    assert layer.local_mp.bn.running_var.isfinite().all()


def test_forced_and_free() -> None:
    layer, x, _ = xcit_layer()
    with kernels.forced("plain"):
        assert not is_fast(layer, x)
        with kernels.forced("fast"):
            assert is_fast(layer, x)
        assert not is_fast(layer, x)
    assert is_fast(layer, x)


@pytest.mark.parametrize("name", LAYERS)
def test_triton_on_the_cpu_is_the_fast_form(name: str) -> None:
    layer, x, forward = LAYERS[name]()
    fast, triton = (outcome(kind, layer, x, forward) for kind in ("fast", "triton"))
    assert all(torch.equal(fast[key], triton[key]) for key in fast)
    with forced("triton"):
        triton_graph = graph(forward(layer, x.requires_grad_()))
    assert triton_graph == graph(forward(layer, x))


def test_no_gradient_is_made_that_nobody_wants() -> None:
    layer, x, forward = xcit_layer()
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    layer.attn.qkv.bias.requires_grad_(True)
    for kind in ("plain", "fast"):
        own = deepcopy(layer)
        with kernels.forced(kind):
            forward(own, x).sum().backward()
        assert [name for name, parameter in own.named_parameters() if parameter.grad is not None] == ["attn.qkv.bias"]


def test_a_token_count_that_no_number_divides_and_a_batch_of_one() -> None:
    layer = randomized(lambda: XCiTLayer(48, 4, 1.0))
    for shape, grid in (((1, 35, 48), (5, 7)), ((3, 1, 48), (1, 1)), ((1, 37, 48), (1, 37))):
        forward = lambda layer, x, grid=grid: layer(x, grid)  # noqa: E731
        plain, fast = (outcome(kind, layer, tokens(*shape), forward) for kind in ("plain", "fast"))
        assert max(difference(plain, fast).values()) < 1e-4


def test_a_channel_of_zeros_has_no_direction() -> None:
    """The channel's norm is 0. Neither form divides by it."""
    layer, x, forward = xcit_layer()
    layer.attn.qkv.weight.data[3] = layer.attn.qkv.bias.data[3] = 0  # a channel of the queries
    plain, fast = (outcome(kind, layer, x, forward) for kind in ("plain", "fast"))
    assert all(value.isfinite().all() for value in fast.values())
    assert difference(plain, fast)["output"] < 1e-5


def test_plain_has_second_derivatives() -> None:
    for make in LAYERS.values():
        layer, x, forward = make()
        with forced("plain"):
            x.requires_grad_()
            (gradient,) = torch.autograd.grad(forward(layer, x).square().sum(), x, create_graph=True)
            gradient.norm().backward()
        assert x.grad is not None and x.grad.isfinite().all()


def test_checkpointing_computes_again_by_the_same_kernels() -> None:
    layer, x, _ = xcit_layer()
    with forced("plain"):
        y = checkpointed(layer, x.requires_grad_(), GRID)
    y.sum().backward()
    assert x.grad is not None
