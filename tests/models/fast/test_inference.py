"""The folded copy for inference has the model's outputs, and the model is unchanged."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import xcit
from xcit.kernels import dispatch, forced
from xcit.models.fast.inference import FoldedXCiTLayer, fuse_for_inference

from ..examples import same, tiny


def images_of(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


SHAPES = [(32, 32), (40, 24), (37, 21)]  # the patch does not divide the last one


def both(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    with forced("plain"), torch.no_grad():
        expected = model(images)
    return expected, fuse_for_inference(model)(images)


@pytest.mark.usefixtures("each_product_route")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"patch_size": 16}, {"num_classes": 0}, {"patch_embed": "linear"}])
def test_its_outputs_are_the_models(shape: tuple[int, int], options: dict[str, Any]) -> None:
    expected, found = both(tiny(**options), images_of(*shape))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not found.requires_grad


@pytest.mark.parametrize("name", ["xcit_t12", "xcit_s12"])
def test_with_a_norm_over_all_tokens_and_more_heads(name: str) -> None:
    torch.manual_seed(0)
    model = xcit.create_model(name, depth=1, num_classes=5).eval()
    expected, found = both(model, images_of(64, 48))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_tokens_and_maps_too() -> None:
    """A layer must not change its input in place."""
    model, images = tiny(depth=3), images_of(40, 24)
    fused = fuse_for_inference(model)
    with torch.no_grad():
        torch.testing.assert_close(fused.forward_features(images), model.forward_features(images), atol=1e-5, rtol=1e-4)
        maps, expected = (m.forward_intermediates(images, [0, 1, 2], intermediates_only=True) for m in (fused, model))
    for one, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("each_product_route")
def test_batch_after_batch_size_after_size_type_after_type() -> None:
    """Cached weights and positions match the current input."""
    model = tiny()
    fused = fuse_for_inference(model)
    with torch.no_grad():
        for shape in (*SHAPES, SHAPES[0]):
            for cast in (False, True, False):
                images = images_of(*shape)
                with torch.autocast("cpu", torch.bfloat16, enabled=cast):
                    expected, found = model(images), fused(images)
                assert found.dtype == expected.dtype
                tolerance = 0.1 if cast else 1e-5
                torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.usefixtures("each_product_route")
def test_moved_copied_and_pickled_after_use() -> None:
    model, images = tiny(), images_of(32, 32)
    fused = fuse_for_inference(model)
    with torch.no_grad():
        expected = model(images)
        fused(images)  # packs the weights
        torch.testing.assert_close(copy.deepcopy(fused)(images), expected, atol=1e-5, rtol=1e-4)
        buffer = io.BytesIO()
        torch.save(fused, buffer)
        buffer.seek(0)
        torch.testing.assert_close(torch.load(buffer, weights_only=False)(images), expected, atol=1e-5, rtol=1e-4)
        for parameter in fused.head.parameters():
            parameter.data *= 2
        torch.testing.assert_close(fused.double()(images.double()).float(), 2 * expected, atol=1e-5, rtol=1e-4)


def test_positions_kept_under_autocast_are_not_for_fp32() -> None:
    model, images = tiny(), images_of(32, 32)
    with torch.inference_mode():
        fused = fuse_for_inference(model)
        with torch.autocast("cpu", torch.bfloat16):
            fused(images)
        torch.testing.assert_close(fused(images), model(images), atol=1e-5, rtol=1e-4)


def test_positions_kept_in_one_type_are_not_for_another() -> None:
    fused, grid = fuse_for_inference(tiny()), (2, 2)
    kept = {}
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            kept[dtype] = fused.pos_embed(grid)
            assert fused.pos_embed(grid) is kept[dtype]
    assert not torch.equal(kept[torch.bfloat16].float(), kept[torch.float16].float())


@pytest.mark.parametrize("fused", [False, True])
def test_exported_for_any_batch(fused: bool) -> None:
    model = tiny()
    given = fuse_for_inference(model) if fused else model
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(given, (torch.randn(4, 3, 32, 32),), dynamic_shapes=(batch,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(images_of(32, 32)), model(images_of(32, 32)), atol=1e-5, rtol=1e-4)


def test_its_state_dict_is_the_models() -> None:
    model = tiny()
    fused = fuse_for_inference(model)
    fused(images_of(32, 32))
    state, expected = fused.state_dict(), model.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    assert all(state[key].data_ptr() != value.data_ptr() for key, value in expected.items())
    other = xcit.create_model("xcit_n12", depth=2, patch_size=8, num_classes=7).eval()
    xcit.load_weights(other, state)
    with torch.no_grad():
        assert torch.equal(other(images_of(32, 32)), model(images_of(32, 32)))


def test_parameters_are_not_kept_twice() -> None:
    """If no weights are packed, only scaled weights have a second tensor."""
    fused = fuse_for_inference(tiny())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "ONEDNN", False)
        fused(images_of(32, 32))
        weights = fused.blocks[0].cache.values[torch.float32]
        mlp = fused.blocks[0].mlp
        assert weights.fc1.weight.data_ptr() == mlp.fc1.weight.data_ptr()
        assert weights.fc2.weight.data_ptr() != mlp.fc2.weight.data_ptr()


def test_operations_are_counted_as_in_the_model() -> None:
    """Positions are cached, and the counter does not know the fused operators."""
    model = tiny().requires_grad_(False)  # torch uses other operations for parameters with gradients
    fused = fuse_for_inference(model)
    with torch.no_grad():
        fused(images_of(32, 32))
        with FlopCounterMode(display=False) as counted:
            fused(images_of(32, 32))
        with forced("plain"), FlopCounterMode(display=False) as expected:
            model(images_of(32, 32))
    assert counted.get_flop_counts() == expected.get_flop_counts()


def test_it_can_be_forced_to_be_plain() -> None:
    model, images = tiny(), images_of(32, 32)
    fused = fuse_for_inference(model)
    with torch.no_grad():
        folded = fused(images)
        with forced("plain"):
            assert torch.equal(fused(images), model(images))
    assert not torch.equal(folded, model(images))


def test_it_trains_as_the_model_does() -> None:
    model, images = tiny().train(), images_of(32, 32)
    fused = fuse_for_inference(model)
    fused(images)
    fused.requires_grad_(True).train()
    for one in (model, fused):
        one(images).square().sum().backward()
    for (name, mine), (_, other) in zip(model.named_parameters(), fused.named_parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad), name
    assert same(dict(model.named_buffers()), dict(fused.named_buffers()))
    with torch.no_grad():
        torch.testing.assert_close(fused.eval()(images), model.eval()(images), atol=1e-5, rtol=1e-4)


def test_fp16_does_not_overflow() -> None:
    model = tiny()
    for block in model.blocks:
        block.attn.qkv.bias.data += 30  # its squares leave the range of fp16 when summed over the tokens
    expected, _ = both(model, images_of(96, 96))
    with torch.autocast("cpu", torch.float16):
        found = fuse_for_inference(model)(images_of(96, 96))
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.1)


def test_hooks_are_heard() -> None:
    model, heard = tiny(), []
    model.blocks[0].register_forward_hook(lambda *_: heard.append("layer"))
    model.patch_embed.proj[0][0].register_forward_hook(lambda *_: heard.append("stem"))
    model.pos_embed.token_projection.register_forward_hook(lambda *_: heard.append("positions"))
    fused = fuse_for_inference(model)
    for _ in range(2):
        fused(images_of(32, 32))
    assert sorted(heard) == ["layer", "layer", "positions", "positions", "stem", "stem"]


def test_what_traces_and_maps_can_have_it() -> None:
    model, images = tiny(), images_of(32, 32)
    fused = fuse_for_inference(model)
    with torch.no_grad():
        expected = model(images)
        traced = torch.jit.trace(fused, images)
        torch.testing.assert_close(traced(images), expected, atol=1e-5, rtol=1e-4)
        for maps in (model, fused):
            mapped = torch.vmap(maps)(images[:, None])
            torch.testing.assert_close(mapped[:, 0], expected, atol=1e-5, rtol=1e-4)


def test_the_model_is_left_alone() -> None:
    model = tiny().train()
    before = copy.deepcopy(model.state_dict())
    fused = fuse_for_inference(model)
    fused(images_of(32, 32))
    assert model.training and not fused.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("options", [{"lpi": False}, {"attention": "self_attention"}, {"pool": "average"}])
def test_what_the_ablation_leaves_out_stays_out(options: dict[str, Any]) -> None:
    expected, found = both(tiny(**options), images_of(32, 40))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_part_that_was_replaced_is_called_as_it_is() -> None:
    model = tiny()
    first = model.blocks[0].mlp.fc1
    model.blocks[0].mlp.fc1 = Doubled(first.in_features, first.out_features)
    expected, found = both(model, images_of(32, 32))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    kinds = [type(block) for block in fuse_for_inference(model).blocks]
    assert kinds[0] is not FoldedXCiTLayer and kinds[1] is FoldedXCiTLayer


class DoubledBatchNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("place", ["patch_embed.proj.0.1", "blocks.1.local_mp.bn"])
def test_what_is_derived_from_batchnorm_may_do_more(place: str) -> None:
    model = tiny()
    model.set_submodule(place, DoubledBatchNorm(model.get_submodule(place).num_features).eval())
    expected, found = both(model, images_of(32, 32))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_other_models_are_refused() -> None:
    with pytest.raises(xcit.InputError, match="must be given an XCiT, not a Linear"):
        fuse_for_inference(nn.Linear(2, 2))
