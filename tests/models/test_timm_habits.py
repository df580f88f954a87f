"""Calls that users of timm make work here too, and return the same."""

import copy
from typing import Any

import pytest
import timm
import timm.data
import torch
import torch.nn.functional as F
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn

import xcit
from scripts.parity import pair, timm_name
from xcit.kernels import forced, forced_kernels
from xcit.models.dry_run import dry_run
from xcit.models.fast.checkpointing import set_checkpointing
from xcit.models.features import FeatureMaps
from xcit.models.timm_models import timm_model

from .examples import same, snapshot, tiny


def images_of(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


# The classifier.


@pytest.mark.parametrize("pool", ["class_attention", "average"])
def test_without_classes_the_output_are_the_features(pool: str) -> None:
    model = tiny(pool=pool)
    with torch.inference_mode():
        features = model.forward_head(model.forward_features(images_of(24, 32)), pre_logits=True)
        assert torch.equal(model.head(features), model(images_of(24, 32)))
        model.reset_classifier(0)
        assert torch.equal(model(images_of(24, 32)), features)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert features.shape == (2, model.num_features)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float64), ("cpu", torch.bfloat16), ("meta", torch.half)])
def test_a_new_classifier_is_like_the_rest_of_the_model(training: bool, device: str, dtype: torch.dtype) -> None:
    model = tiny().to(device, dtype).train(training)
    before = {key: value for key, value in model.state_dict().items() if not key.startswith("head.")}
    for classes in (3, 0, 5):
        model.reset_classifier(classes)
        assert model.training is training
        assert all(part.training is training for part in model.modules())
        assert {(p.device.type, p.dtype) for p in model.parameters()} == {(device, dtype)}
        assert model.num_classes == classes
        assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 224, 224)
    head = model.get_classifier()
    assert head is model.head and head.out_features == 5
    after = {key: value for key, value in model.state_dict().items() if not key.startswith("head.")}
    assert before.keys() == after.keys()
    assert all(value.data_ptr() == after[key].data_ptr() for key, value in before.items())


def test_a_new_classifier_takes_the_names_of_timms_arguments() -> None:
    """Fine-tuning scripts call model.reset_classifier(num_classes=…)."""
    model = tiny()
    model.reset_classifier(num_classes=3)
    assert model(images_of(16, 16)).shape == (2, 3)
    assert model.head.bias.count_nonzero() == 0 and 0.01 < model.head.weight.std() < 0.03


# Feature maps.


@pytest.mark.parametrize("indices", [(0, 1), (1, 0), (-1,), (0, -2)])
def test_the_maps_are_those_of_forward_intermediates(indices: tuple[int, ...]) -> None:
    options: dict[str, Any] = {"depth": 2, "patch_size": 8}
    maps = xcit.create_model("xcit_n12", features_only=True, out_indices=indices, **options).eval()
    assert isinstance(maps, FeatureMaps)
    whole = xcit.create_model("xcit_n12", **options).eval()
    maps.model.load_state_dict({k: v for k, v in whole.state_dict().items() if k in maps.model.state_dict()})
    with torch.inference_mode():
        found = maps(images_of(20, 32))
        expected = whole.forward_intermediates(images_of(20, 32), indices, intermediates_only=True)
    assert len(found) == len(indices)
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)
    assert maps.feature_info.channels() == [m.shape[1] for m in found]
    assert maps.feature_info.reduction() == [8] * len(indices)
    assert maps.feature_info.module_name() == [f"blocks.{index % 2}" for index in indices]


@pytest.mark.parametrize(("name", "depth"), [("xcit_n12", 12), ("xcit_t24", 24)])
def test_the_default_taps_are_the_papers_and_what_nothing_needs_is_gone(name: str, depth: int) -> None:
    with torch.device("meta"):
        maps = xcit.create_model(name, features_only=True)
        earlier = xcit.create_model(name, features_only=True, out_indices=(1, 3))
        theirs = timm.create_model(timm_name(name, 16), features_only=True, out_indices=[1, 3])
    assert maps.out_indices == {12: (3, 5, 7, 11), 24: (7, 11, 15, 23)}[depth]
    assert not [key for key in maps.state_dict() if "cls_" in key or "head" in key or key.startswith("model.norm")]
    assert earlier.feature_info.channels() == theirs.feature_info.channels()
    assert earlier.feature_info.reduction() == theirs.feature_info.reduction()
    assert len(earlier.model.blocks) == 4


@pytest.mark.parametrize("indices", [(0, 2), (-3,), (1, 12)])
def test_taps_of_layers_that_do_not_exist_are_refused(indices: tuple[int, ...]) -> None:
    with pytest.raises(xcit.InputError, match=r"out_indices|indices"):
        xcit.create_model("xcit_n12", depth=2, features_only=True, out_indices=indices)


def test_every_parameter_of_the_maps_is_used() -> None:
    maps = xcit.create_model("xcit_n12", depth=3, patch_size=8, features_only=True, out_indices=(0, 1)).train()
    sum(m.square().sum() for m in maps(images_of(16, 24))).backward()
    assert not [name for name, p in maps.named_parameters() if p.grad is None]


# What timm's tools read.


@pytest.mark.parametrize(("name", "patch_size"), [("xcit_n12", 16), ("xcit_s12", 8), ("xcit_m24", 16)])
def test_the_data_configuration_is_timms_own(name: str, patch_size: int) -> None:
    with torch.device("meta"):
        ours, theirs = xcit.create_model(name, patch_size=patch_size), timm.create_model(timm_name(name, patch_size))
    assert timm.data.resolve_model_data_config(ours) == timm.data.resolve_model_data_config(theirs)
    for key in ("first_conv", "classifier", "num_classes"):
        assert ours.pretrained_cfg[key] == theirs.pretrained_cfg[key], key
    ours.get_submodule(ours.pretrained_cfg["first_conv"])
    timm.data.create_transform(**timm.data.resolve_model_data_config(ours), is_training=True)


@pytest.mark.parametrize("options", [{}, {"patch_embed": "linear"}, {"pool": "average"}, {"position": "learned"}])
def test_layers_are_ordered_from_the_stem_to_the_head(options: dict) -> None:
    model = tiny(**options)
    layers = group_with_matcher(model.named_parameters(), model.group_matcher(), reverse=True)
    assert set(layers) == {name for name, _ in model.named_parameters()}

    def depths(*prefixes: str) -> set[int]:
        return {layer for name, layer in layers.items() if name.startswith(prefixes)}

    order = [depths("cls_token", "pos_embed", "patch_embed"), depths("blocks.0."), depths("blocks.1.")]
    if model.pool == "class_attention":
        order += [depths("cls_attn_blocks.0."), depths("cls_attn_blocks.1.")]
    flat = [layer for layers_of in order for layer in layers_of]
    assert all(len(layers_of) == 1 for layers_of in order)
    assert flat == sorted(set(flat))
    assert depths("norm") == {max(flat)}, "it belongs to the last of them"
    assert min(depths("head")) > max(flat)


def test_layers_are_timms() -> None:
    theirs, ours = pair("xcit_n12", 16)
    grouped = [group_with_matcher(m.named_parameters(), m.group_matcher(), reverse=True) for m in (ours, theirs)]
    assert grouped[0] == grouped[1]


def test_what_timm_spares_from_decay_is_spared_here() -> None:
    theirs, ours = pair("xcit_n12", 16)
    assert ours.no_weight_decay() <= {"cls_token", "pos_embed"}
    parameters = dict(theirs.named_parameters())
    assert {name for name in theirs.no_weight_decay() if name in parameters} <= ours.no_weight_decay()


# Gradient checkpointing.


class Bytes:
    """Counts the bytes that autograd saves for the backward pass, each memory once."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.seen[storage.data_ptr()] = storage.nbytes()
        return tensor


def one_step(model: nn.Module) -> tuple[Tensor, dict[str, Tensor], int]:
    """(loss, gradients, saved bytes) of one batch, from the same random numbers each time."""
    torch.manual_seed(3)
    kept = Bytes()
    with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda tensor: tensor):
        loss = F.cross_entropy(model(images_of(32, 40, 8)), torch.arange(8) % 7)
        held = sum(kept.seen.values())
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, held


@pytest.mark.parametrize("options", [{}, {"attention": "self_attention"}, {"pool": "average"}, {"l2_norm": False}])
def test_checkpointing_changes_nothing_but_the_memory(options: dict) -> None:
    """Checkpointing changes neither loss, gradients nor running statistics (two steps, with stochastic depth)."""
    plain = tiny(drop_path_rate=0.4, depth=4, **options).train()
    saving = copy.deepcopy(plain)
    set_checkpointing(saving, True)
    for _ in range(2):
        loss, gradients, held = one_step(plain)
        same_loss, same_gradients, less_held = one_step(saving)
        assert torch.equal(loss, same_loss)
        assert same(gradients, same_gradients)
        assert same(dict(plain.named_buffers()), dict(saving.named_buffers()))
        assert less_held < 0.5 * held
    counters = {value.item() for key, value in saving.named_buffers() if key.endswith("num_batches_tracked")}
    first = {value.item() for key, value in tiny(depth=4).named_buffers() if key.endswith("num_batches_tracked")}
    assert counters == {count + 2 for count in first}


def test_checkpointing_keeps_frozen_statistics_as_they_are() -> None:
    model = tiny(drop_path_rate=0.4).train()
    model.set_grad_checkpointing()
    model.blocks[0].eval().requires_grad_(False)
    before = snapshot(model.blocks[0])
    one_step(model)
    assert same(model.blocks[0].state_dict(), before)


def test_checkpointing_recomputes_with_the_same_kernels() -> None:
    """The backward pass runs outside `forced`. PyTorch raises an error if the recomputation saves other tensors."""
    model = tiny().train()
    model.set_grad_checkpointing()
    with forced("plain"):
        loss = model(images_of(32, 32)).sum()
    loss.backward()
    assert forced_kernels() == "auto"


def test_checkpointing_can_be_switched_off_and_is_off_in_evaluation() -> None:
    model = tiny()
    model.set_grad_checkpointing()
    *_, held = one_step(model)
    model.set_grad_checkpointing(False)
    assert one_step(model)[2] == held
    assert one_step(model.train())[2] == pytest.approx(held, rel=0.1)


def test_a_model_without_the_switch_is_refused() -> None:
    with pytest.raises(xcit.InputError, match=r"train\.grad_checkpointing=true: Linear has no gradient checkpointing"):
        set_checkpointing(nn.Linear(1, 1), True)
    set_checkpointing(timm_model(name="test_vit"), True)


# timm's own models.


def test_an_unknown_model_of_timms_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        xcit.InputError, match=r"model\.name=deit_smal_patch16_224: unknown; did you mean deit_small_pat"
    ):
        timm_model(name="deit_smal_patch16_224")


def test_an_unknown_tag_of_its_weights_is_one_line() -> None:
    with pytest.raises(xcit.InputError, match=r"deit_small_patch16_224\.fb_in21k") as caught:
        timm_model(name="deit_small_patch16_224.fb_in21k")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["test_vit", "timm/test_vit.r160_in1k", "swin_tiny_patch4_window7_224"])
def test_a_model_that_is_built_for_a_size_takes_others(name: str) -> None:
    with torch.device("meta"):
        model = timm_model(name=name, num_classes=3, image_size=64).eval()
        for size in (64, 96, 128):
            assert model(torch.empty(1, 3, size, size)).shape == (1, 3)


def test_a_small_vit_computes_at_other_sizes() -> None:
    model = timm_model(name="test_vit", num_classes=3, image_size=32).eval()
    with torch.inference_mode():
        for size in (32, 48):
            assert model(images_of(size, size)).shape == (2, 3)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "regnety_002", "xcit_nano_12_p16_224", "test_vit"])
def test_a_dry_run_finds_nothing_against_a_model_that_takes_every_size(name: str) -> None:
    options = {"name": name, "num_classes": 3, "image_size": 64}
    model = dry_run("timm", options, {"data.image_size": [64], "resolutions": [48, 96, 128]})
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_a_dry_run_names_the_key_whose_size_the_model_does_not_take() -> None:
    """CaiT is built for one size, and has no option for others."""
    options = {"name": "cait_xxs24_224", "image_size": 224}
    dry_run("timm", options, {"data.image_size": [224]})
    with pytest.raises(
        xcit.InputError, match=r"^resolutions=160: the model does not take images of this size"
    ) as caught:
        dry_run("timm", options, {"data.image_size": [224], "resolutions": [224, 160]})
    assert "\n" not in str(caught.value)


def test_a_dry_run_names_the_option_that_is_wrong() -> None:
    with pytest.raises(xcit.InputError, match=r"^model\.patch_size=12: must be one of"):
        dry_run("xcit_n12", {"patch_size": 12}, {})
    with pytest.raises(xcit.InputError, match=r"^data\.image_size=8: the model does not take images of this size.*8×8"):
        dry_run("xcit_n12", {}, {"data.image_size": [8]})
    with pytest.raises(xcit.InputError, match=r"^model\.name=resnet19: unknown"):
        dry_run("timm", {"name": "resnet19"}, {})
