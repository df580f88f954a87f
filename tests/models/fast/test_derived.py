"""Folded tensors always match the current parameters."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from xcit.kernels import dispatch, forced
from xcit.models.fast.derived import CachesDerived
from xcit.models.fast.inference import fuse_for_inference

from ..examples import moved, tiny
from .test_inference import Doubled, images_of


def load(fused: nn.Module, state: dict[str, Tensor]) -> None:
    fused.load_state_dict(state)


def assign(fused: nn.Module, state: dict[str, Tensor]) -> None:
    fused.load_state_dict(state, assign=True)


def load_in_inference_mode(fused: nn.Module, state: dict[str, Tensor]) -> None:
    with torch.inference_mode():
        fused.load_state_dict(state)


def exchange_data(fused: nn.Module, state: dict[str, Tensor]) -> None:
    """Replaces the data twice, so that the second memory may be at the first one's address."""
    for name, tensor in (*fused.named_parameters(), *fused.named_buffers()):
        tensor.data = tensor.data + 1
        tensor.data = state[name].clone()


def put_new_parameters(fused: nn.Module, state: dict[str, Tensor]) -> None:
    fused.load_state_dict(state)
    for name, parameter in list(fused.named_parameters()):
        owner, _, own = name.rpartition(".")
        setattr(fused.get_submodule(owner), own, nn.Parameter(parameter.detach().clone(), requires_grad=False))


@pytest.mark.usefixtures("each_product_route")
@pytest.mark.parametrize("change", [load, assign, load_in_inference_mode, exchange_data, put_new_parameters])
def test_weights_changed_after_use(change: Callable[[nn.Module, dict[str, Tensor]], None]) -> None:
    """Changing the weights invalidates the cache."""
    images, model, other = images_of(32, 32), tiny(), tiny(layer_scale_init=0.5)
    fused = fuse_for_inference(model)
    state = moved(other.state_dict(), 0.01)
    other.load_state_dict(state)
    with torch.no_grad():
        fused(images)
        change(fused, state)
        torch.testing.assert_close(fused(images), fuse_for_inference(other)(images), rtol=0, atol=0)


@pytest.mark.parametrize("key", list(tiny().state_dict()))
def test_a_single_tensor_changed_after_use(key: str) -> None:
    """Changing any single tensor invalidates the cache."""
    fused = fuse_for_inference(tiny())
    with torch.no_grad():
        before = fused(images_of(32, 32))
        changed = fused.state_dict()[key]
        changed += 1
        found = fused(images_of(32, 32))
        assert torch.equal(found, copy.deepcopy(fused)(images_of(32, 32)))
    # The keys' bias does not change a softmax, and only training uses the counter of batches.
    if not key.endswith(("attn.k.bias", "num_batches_tracked")):
        assert not torch.equal(found, before)


def test_new_tensors_cannot_be_taken_for_old_ones() -> None:
    """A new tensor at the old address would not be detected, so the cache keeps the old memory in use."""
    fused = fuse_for_inference(tiny())
    fused(images_of(32, 32))
    scale = fused.blocks[0].gamma2
    memory = StorageWeakRef(scale.untyped_storage())
    scale.data = scale.data + 1
    assert not memory.expired()
    fused(images_of(32, 32))
    assert memory.expired()


def test_positions_of_one_grid_are_kept() -> None:
    fused = fuse_for_inference(tiny())
    for size in (32, 48, 64):
        fused(images_of(size, size))
        assert [grid for grid, _ in fused.pos_embed.cache.values] == [(size // 8, size // 8)]


def test_folded_tensors_are_kept() -> None:
    fused = fuse_for_inference(tiny())
    fused(images_of(32, 32))
    parts = [part for part in fused.modules() if isinstance(part, CachesDerived)]
    kept = [part.cache for part in parts]
    fused(images_of(24, 40))
    assert len(parts) == 4 and None not in kept
    assert [part.cache for part in parts] == kept


def test_cast_after_use() -> None:
    model, images = tiny(), images_of(32, 32)
    fused = fuse_for_inference(model)
    with torch.no_grad():
        fused(images)
        fused.to(torch.bfloat16).float()
        model.to(torch.bfloat16).float()
        torch.testing.assert_close(fused(images), fuse_for_inference(model)(images), rtol=0, atol=0)


@pytest.mark.skipif(dispatch.ONEDNN is False, reason="only oneDNN packs weights")
def test_what_is_kept_is_neither_copied_nor_saved() -> None:
    sizes = []
    fused = fuse_for_inference(tiny())
    for thing in (fused, copy.deepcopy(fused)):
        thing(images_of(32, 32))
        buffer = io.BytesIO()
        torch.save(thing, buffer)
        sizes.append(buffer.tell())
        assert copy.deepcopy(thing).blocks[0].cache is None
    parameters = sum(4 * p.numel() for p in fused.parameters())
    assert max(sizes) < 1.2 * parameters + 50_000


def test_a_hook_on_a_part_is_heard_as_long_as_it_is_there() -> None:
    fused, heard = fuse_for_inference(tiny()), []
    layer, images = fused.blocks[0], images_of(32, 32)
    folded = fused(images)
    handle = layer.attn.register_forward_hook(lambda *_: heard.append("attention"))
    fused(images)
    assert heard == ["attention"]
    handle.remove()
    assert torch.equal(fused(images), folded) and heard == ["attention"]
    layer.attn.forward = lambda x: heard.append("instead") or torch.zeros_like(x)
    fused(images)
    assert heard == ["attention", "instead"]


def test_a_part_that_is_replaced_after_folding_is_called() -> None:
    model, images = tiny(), images_of(32, 32)
    fused = fuse_for_inference(model)
    fused(images)
    for one in (model, fused):
        first = one.blocks[0].mlp.fc1
        one.blocks[0].mlp.fc1 = Doubled(first.in_features, first.out_features).eval()
        one.blocks[0].mlp.fc1.load_state_dict(first.state_dict())
    with torch.no_grad(), forced("plain"):
        expected = model(images)
    torch.testing.assert_close(fused(images).detach(), expected, atol=1e-5, rtol=1e-4)


def test_a_replica_of_data_parallel_uses_its_own_weights() -> None:
    """A replica shares its attributes with the original, but has its own parameters."""
    layer = fuse_for_inference(tiny()).blocks[0]
    x = torch.randn(2, 16, 128)
    layer(x, (4, 4))
    replica = layer._replicate_for_data_parallel()
    for name, parameter in layer._parameters.items():
        setattr(replica, name, 2 * parameter)
    assert not torch.allclose(replica(x, (4, 4)), layer(x, (4, 4)))
