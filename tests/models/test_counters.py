"""Tools that count operations see them all, and models are built and run without data."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import xcit
from xcit.kernels import forced
from xcit.models.class_attention import ClassAttention

from .examples import tiny

IMAGES = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))


def flops_of_step(model: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter:
        model(IMAGES).sum().backward()
    return counter.get_total_flops()


def test_the_flops_of_a_training_step_are_those_of_the_plain_form() -> None:
    model = tiny().train()
    with forced("plain"):
        expected = flops_of_step(model)
    assert flops_of_step(model) == expected > 0


def test_the_flops_of_a_compiled_model_are_those_of_the_plain_form() -> None:
    """Compiled code calls custom operators, which a FLOP counter does not know. torch runs eager code under one."""
    torch._dynamo.reset()
    model = tiny().train()
    compiled = copy.deepcopy(model)
    for block in compiled.blocks:
        block.compile(dynamic=False)
    compiled(IMAGES).sum().backward()
    assert flops_of_step(compiled) == flops_of_step(model)


def test_the_flops_of_the_backward_pass_alone_are_complete() -> None:
    """Class attention is left out: its fast form needs fewer operations."""
    model = tiny().train()
    for layer in model.cls_attn_blocks:
        layer.attn.__class__ = ClassAttention
    found = []
    for kind in ("auto", "plain"):
        with forced(kind):
            loss = model(IMAGES).sum()
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        found.append(counter.get_total_flops())
    assert found[0] == found[1] > 0


class Multiplications:
    """A counter that hooks linear layers and convolutions, as thop, ptflops, torchinfo and DeepSpeed's profiler do."""

    def __init__(self, model: nn.Module) -> None:
        self.count = 0
        for part in model.modules():
            if isinstance(part, (nn.Linear, nn.Conv2d)):
                part.register_forward_hook(self.add)

    def add(self, part: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        places = output.numel() // part.weight.shape[0]  # type: ignore[union-attr, operator]
        self.count += places * part.weight.numel()  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("folded", [True, False])
def test_a_counter_with_hooks_counts_every_linear_layer_and_convolution(folded: bool) -> None:
    model = xcit.fuse_for_inference(tiny()) if folded else tiny()
    with torch.no_grad():
        model(IMAGES)
    counter = Multiplications(model)
    with torch.no_grad():
        model(IMAGES)
    B, N, C = 2, 48, 128
    layers = B * N * (12 * C * C + 18 * C)  # the projections of attention, the feed-forward network, LPI
    class_layers = B * ((N + 1) * 2 * C * C + 10 * C * C)  # keys and values; the rest has the class token alone
    stem = B * N * (4 * 4 * 3 * 9 * C // 4 + 4 * 9 * C // 4 * C // 2 + 9 * C // 2 * C) + N * 64 * C
    assert counter.count == 2 * layers + 2 * class_layers + stem + B * C * 7


class Linears(TorchFunctionMode):
    """A counter of torch's functions."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.nn.functional.linear
        return function(*args, **(kwargs or {}))


def test_a_function_mode_sees_every_linear_layer() -> None:
    model = tiny()
    with Linears() as mode, torch.no_grad():
        model(IMAGES)
    # 4 in each of two XCiT layers, 6 in each of two class-attention layers, and the head.
    assert mode.count == 4 * 2 + 6 * 2 + 1


def test_a_default_device_keeps_the_fast_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.device as a context is a function mode, too."""
    from xcit.kernels import runs_fast_form

    model = tiny()
    tokens, _ = model.embed(IMAGES)
    with torch.device("cpu"):
        assert runs_fast_form(model.blocks[0], tokens)
    with Linears():
        assert not runs_fast_form(model.blocks[0], tokens)


# Without data.

OPTIONS: list[dict] = [{}, {"position": "learned"}, {"patch_embed": "linear"}, {"pool": "average"}]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_fake_model_is_built_trains_and_gives_maps(options: dict) -> None:
    with FakeTensorMode():
        model = xcit.create_model("xcit_n12", depth=2, patch_size=8, num_classes=7, **options).train()
        model.reset_classifier(5)
        logits = model(torch.empty(2, 3, 40, 36))
        logits.sum().backward()
        maps = model.eval().forward_intermediates(torch.empty(2, 3, 40, 36), intermediates_only=True)
    assert logits.shape == (2, 5) and [m.shape for m in maps] == [(2, 128, 5, 5)] * 2
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize("options", OPTIONS)
def test_a_model_on_the_meta_device_is_built_and_trains(options: dict) -> None:
    with torch.device("meta"):
        model = xcit.create_model("xcit_n12", depth=2, patch_size=8, num_classes=7, **options).train()
        logits = model(torch.empty(2, 3, 40, 36))
        logits.sum().backward()
    assert logits.shape == (2, 7) and logits.is_meta
