"""timm's methods, attributes and arguments do here what they do there."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models._manipulate import adapt_input_conv
from torch import Tensor

import xcit
from scripts.parity import pair, timm_name
from xcit.models.fast.training import FastXCiTLayer
from xcit.models.features import FeatureMaps
from xcit.preprocessing import Preprocessing

from .examples import moved, same, tiny


def images_of(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def as_list(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, list) else [result[0], *result[1]]


# Intermediate features.


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"indices": 3},
        {"indices": [2, -1], "norm": True},
        {"indices": [1, 4], "stop_early": True},
        {"indices": [0], "output_fmt": "NLC"},
        {"indices": [3], "intermediates_only": True},
    ],
)
def test_intermediates_are_timms(arguments: dict) -> None:
    theirs, ours = pair("xcit_n12", 16)
    with torch.no_grad():
        found, expected = (as_list(m.forward_intermediates(images_of(32, 48), **arguments)) for m in (ours, theirs))
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)


def test_the_first_of_the_intermediates_is_forward_features() -> None:
    model = tiny()
    final, maps = model.forward_intermediates(images_of(24, 32), return_prefix_tokens=True)
    assert torch.equal(final, model.forward_features(images_of(24, 32)))
    assert [m.shape for m in maps] == [(2, 128, 3, 4)] * 2


def test_wrong_arguments_of_intermediates_are_refused() -> None:
    with pytest.raises(xcit.InputError, match="output_fmt='NHWC': must be one of NCHW, NLC"):
        tiny().forward_intermediates(images_of(8, 8), output_fmt="NHWC")
    with pytest.raises(xcit.InputError, match="the last 3 layers are not in 1 … 2"):
        tiny().forward_intermediates(images_of(8, 8), 3)
    with pytest.raises(xcit.InputError, match=r"indices=\['a'\]: layer a is not in -2 … 1"):
        tiny().forward_intermediates(images_of(8, 8), ["a"])


@pytest.mark.parametrize("prune_norm", [True, False])
@pytest.mark.parametrize("prune_head", [True, False])
def test_pruning_is_timms(prune_norm: bool, prune_head: bool) -> None:
    theirs, ours = pair("xcit_n12", 16)
    results = [m.prune_intermediate_layers([1, 3], prune_norm, prune_head) for m in (ours, theirs)]
    assert results[0] == results[1] == [1, 3]
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(ours(images_of(32, 48)), theirs(images_of(32, 48)), rtol=1e-3, atol=1e-3)


def test_a_pruned_model_is_saved_as_what_it_is(tmp_path: Path) -> None:
    model = tiny(depth=3)
    model.prune_intermediate_layers([1])
    model.save_pretrained(tmp_path)
    back = xcit.XCiT.from_pretrained(tmp_path)
    assert len(back.blocks) == 2 and torch.equal(back(images_of(16, 24)), model(images_of(16, 24)))


def test_feature_extractors_describe_themselves_as_timms_do() -> None:
    with torch.device("meta"):
        ours = xcit.create_model("xcit_n12", features_only=True, out_indices=(1, 3), feature_cls="getter")
        theirs = timm.create_model(timm_name("xcit_n12", 16), features_only=True, out_indices=(1, 3))
    assert isinstance(ours, FeatureMaps)
    for method in ("channels", "reduction", "module_name", "get_dicts"):
        for index in (None, 2, [0, 2]):
            mine, other = (getattr(m.feature_info, method)(idx=index) for m in (ours, theirs))
            assert mine == other, (method, index)
    assert ours.feature_info.get("num_chs", 1) == theirs.feature_info.get("num_chs", 1)
    assert tuple(ours.feature_info.out_indices) == tuple(theirs.feature_info.out_indices)
    assert ours.default_cfg["input_size"] == theirs.default_cfg["input_size"]
    assert len(xcit.create_model("xcit_n12", features_only=True, out_indices=2, device="meta").out_indices) == 2


# Attributes and pooling.


def test_attributes_are_timms() -> None:
    with torch.device("meta"):
        ours = xcit.create_model("xcit_n12", drop_rate=0.1, pos_drop_rate=0.2, in_chans=4)
        theirs = timm.create_model(timm_name("xcit_n12", 16), drop_rate=0.1, pos_drop_rate=0.2, in_chans=4)
    names = "embed_dim num_features head_hidden_size num_prefix_tokens global_pool in_chans num_classes"
    for name in names.split():
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (ours.head_drop.p, ours.pos_drop.p) == (theirs.head_drop.p, theirs.pos_drop.p) == (0.1, 0.2)


@pytest.mark.parametrize("pool", ["token", "avg", ""])
@pytest.mark.parametrize("num_classes", [1000, 0])
def test_every_pooling_is_timms(pool: str, num_classes: int) -> None:
    theirs, _ = pair("xcit_n12", 16)
    ours = xcit.create_model("xcit_n12", global_pool=pool).eval()
    ours.load_state_dict(theirs.state_dict())
    for model in (ours, theirs):
        if num_classes == 0:
            model.reset_classifier(0, pool)
        else:
            model.global_pool = pool
    with torch.no_grad():
        torch.testing.assert_close(ours(images_of(32, 48)), theirs(images_of(32, 48)), rtol=1e-3, atol=1e-3)


def test_the_pooling_is_saved(tmp_path: Path) -> None:
    model = tiny()
    model.reset_classifier(3, "avg")
    model.save_pretrained(tmp_path)
    assert xcit.XCiT.from_pretrained(tmp_path).global_pool == "avg"


# Dropout.


@pytest.mark.parametrize("rate", ["drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate"])
@pytest.mark.parametrize("attention", ["xca", "self_attention"])
def test_dropout_acts_in_training_alone(rate: str, attention: str) -> None:
    plain = tiny(attention=attention)
    model = xcit.create_model("xcit_n12", depth=2, patch_size=8, num_classes=7, attention=attention, **{rate: 0.5})
    model.load_state_dict(plain.state_dict())
    torch.testing.assert_close(model.eval()(images_of(16, 24)), plain(images_of(16, 24)), rtol=1e-4, atol=1e-5)
    model.train()
    assert not torch.allclose(model(images_of(16, 24)), model(images_of(16, 24)), rtol=1e-2)


def test_layers_with_dropout_run_their_plain_form_also_when_folded() -> None:
    model = tiny(proj_drop_rate=0.5)
    assert not any(isinstance(block, FastXCiTLayer) for block in model.blocks)
    folded = xcit.fuse_for_inference(model)
    with torch.no_grad():
        torch.testing.assert_close(folded(images_of(16, 24)), model(images_of(16, 24)), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(folded.train()(images_of(16, 24)), folded(images_of(16, 24)), rtol=1e-2)


# Arguments of create_model.


def test_timms_names_of_models_and_arguments() -> None:
    model = xcit.create_model(
        "xcit_tiny_12_p8_384.fb_dist_in1k",
        False,
        img_size=(64, 64),
        use_pos_embed=False,
        scriptable=True,
        device="meta",
    )
    assert (model.embed_dim, model.patch_size, model.default_cfg["input_size"]) == (192, 8, (3, 64, 64))
    assert model.init_options()["position"] == "none"
    model = xcit.create_model("xcit_small_24_p16_384", device="meta", drop_block_rate=None)
    assert (len(model.blocks), model.default_cfg["input_size"]) == (24, (3, 384, 384))


@pytest.mark.parametrize(("name", "size"), [("xcit_s12_p8", 224), ("xcit_s12_p8.fb_dist_in1k_384", 384)])
def test_our_names_of_published_weights_are_names_of_models(name: str, size: int) -> None:
    model = xcit.create_model(name, device="meta")
    assert (model.embed_dim, model.patch_size, model.default_cfg["input_size"]) == (384, 8, (3, size, size))


def test_a_name_with_pretrained_means_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("xcit.models.load_weights", lambda model, source: asked.append(source))
    xcit.create_model("xcit_nano_12_p16_384.fb_dist_in1k", True)
    xcit.create_model("xcit_nano_12_p8_224", pretrained=True)
    xcit.create_model("xcit_n12_p8.fb_dist_in1k_384", pretrained=True)
    xcit.create_model("xcit_n12_p8", pretrained=True)
    assert asked == [
        *("xcit_n12_p16.fb_dist_in1k_384", "xcit_n12_p8.fb_in1k"),
        *("xcit_n12_p8.fb_dist_in1k_384", "xcit_n12_p8.fb_in1k"),
    ]


def test_device_and_dtype() -> None:
    model = xcit.create_model("xcit_n12", depth=1, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}


def test_a_checkpoint_path_is_loaded(tmp_path: Path) -> None:
    state = moved(tiny().state_dict(), 0.5)
    torch.save({"model": state}, tmp_path / "weights.pth")
    options = {"depth": 2, "patch_size": 8, "num_classes": 7}
    model = xcit.create_model("xcit_n12", checkpoint_path=tmp_path / "weights.pth", **options)
    assert same(model.state_dict(), state)


@pytest.mark.parametrize("in_chans", [1, 2, 4, 7])
@pytest.mark.parametrize("patch_embed", ["conv", "linear"])
def test_weights_for_rgb_load_into_other_channels_as_in_timm(in_chans: int, patch_embed: str) -> None:
    source = tiny(patch_embed=patch_embed).state_dict()
    model = tiny(in_chans=in_chans, patch_embed=patch_embed)
    with pytest.warns(xcit.Notice, match=rf"is for 3 channels; the model's is for {in_chans}"):
        xcit.load_weights(model, dict(source))
    first = f"{model.default_cfg['first_conv']}.weight"
    assert torch.equal(model.state_dict()[first], adapt_input_conv(in_chans, source[first].clone()))
    rest = {key: value for key, value in model.state_dict().items() if key != first}
    assert same(rest, {key: value for key, value in source.items() if key != first})


def test_a_model_for_other_channels_keeps_its_channels_in_its_description(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    with pytest.warns(xcit.Notice, match="for 3 channels"):
        model = xcit.create_model(
            "xcit_n12", depth=2, patch_size=8, num_classes=7, in_chans=5, pretrained=str(tmp_path)
        )
    settings = Preprocessing.of_model(model)
    assert settings.channels == 5 and settings.mean == (pytest.approx(0.449),) * 5


def test_weights_for_other_channels_than_rgb_are_refused() -> None:
    with pytest.raises(xcit.InputError, match="of another shape"):
        xcit.load_weights(tiny(in_chans=2), dict(tiny(in_chans=4).state_dict()))
