"""The architecture has the paper's properties for any image size."""

import math

import pytest
import torch
from torch import Tensor

import xcit
from xcit.models.cross_covariance import CrossCovarianceAttention
from xcit.models.position import SinePositionEncoding
from xcit.models.stochastic_depth import StochasticDepth

from ..test_rooms import MODULES, imports

# From the paper: millions of parameters at patch 16 and 8, with 1000 classes.
PARAMETERS = {
    "xcit_n12": (3.05, 3.05),
    "xcit_t12": (6.72, 6.71),
    "xcit_t24": (12.12, 12.11),
    "xcit_s12": (26.25, 26.21),
    "xcit_s24": (47.67, 47.63),
    "xcit_m24": (84.40, 84.32),
    "xcit_l24": (189.10, 188.93),
}


def small(**options: object) -> xcit.XCiT:
    torch.manual_seed(0)
    model = xcit.create_model("xcit_n12", num_classes=10, **options)
    assert isinstance(model, xcit.XCiT)
    return model.eval()


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("xcit.models") and ".fast." not in name])
def test_the_architecture_knows_no_kernels(name: str) -> None:
    """The files of xcit/models contain the mathematics; their fused forms are in xcit/models/fast."""
    assert not [imported for imported in imports(name) if imported.startswith("xcit.kernels")]


def test_the_seven_variants_are_listed() -> None:
    assert xcit.list_models() == list(PARAMETERS)


def test_the_list_takes_patterns_as_timms() -> None:
    assert xcit.list_models("*24") == ["xcit_t24", "xcit_s24", "xcit_m24", "xcit_l24"]
    assert xcit.list_models(["xcit_n*", "*l24"]) == ["xcit_n12", "xcit_l24"]
    assert xcit.list_models("resnet*") == []


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("patch_size", [16, 8])
def test_parameter_counts_are_the_published_ones(name: str, patch_size: int) -> None:
    with torch.device("meta"):
        model = xcit.create_model(name, patch_size=patch_size)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert round(millions, 2) == PARAMETERS[name][patch_size == 8]


@pytest.mark.parametrize("patch_embed", ["conv", "linear"])
@pytest.mark.parametrize("patch_size", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (2.5, 1.1)])
def test_any_patch_size_takes_any_image_that_holds_a_patch(
    patch_embed: str, patch_size: int, size: tuple[float, float]
) -> None:
    """Incomplete patches are padded: the grid is the size over the patch, rounded up, in all methods."""
    model = small(patch_size=patch_size, patch_embed=patch_embed)
    height, width = (math.ceil(side * patch_size) for side in size)
    grid = math.ceil(height / patch_size), math.ceil(width / patch_size)
    images = torch.randn(2, 3, height, width)
    with torch.inference_mode():
        assert model(images).shape == (2, 10)
        assert model.forward_features(images).shape == (2, 1 + grid[0] * grid[1], 128)
        (features,) = model.forward_intermediates(images, [0], intermediates_only=True)
    assert features.shape == (2, 128, *grid)


@pytest.mark.parametrize("entry", ["forward", "forward_features", "forward_intermediates"])
@pytest.mark.parametrize("size", [(15, 32), (32, 15)])
def test_an_image_under_one_patch_is_refused_at_every_entry(entry: str, size: tuple[int, int]) -> None:
    arguments = ([0],) if entry == "forward_intermediates" else ()
    with pytest.raises(xcit.InputError, match=rf"{size[0]}×{size[1]} pixels: must hold one patch of 16×16"):
        getattr(small(), entry)(torch.zeros(1, 3, *size), *arguments)


def test_the_linear_projection_pads_with_zeros() -> None:
    model = small(patch_embed="linear")
    image = torch.randn(1, 3, 20, 40)
    padded = torch.zeros(1, 3, 32, 48)
    padded[..., :20, :40] = image
    with torch.inference_mode():
        assert torch.equal(model(image), model(padded))


def test_intermediates_are_the_tokens_after_each_layer() -> None:
    model = small()
    images = torch.randn(2, 3, 48, 32)
    seen: dict[int, Tensor] = {}
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _module, _inputs, output, i=i: seen.update({i: output}))
    with torch.inference_mode():
        maps = model.forward_intermediates(images, [5, -10, 5], intermediates_only=True)
    assert sorted(seen) == [0, 1, 2, 3, 4, 5], "nothing behind the last wanted layer is computed"
    for features, layer in zip(maps, [5, 2, 5], strict=True):
        assert torch.equal(features.flatten(2).mT, seen[layer])


def test_intermediates_of_layers_that_do_not_exist_are_refused() -> None:
    with pytest.raises(xcit.InputError, match="layer 12 is not in -12 … 11"):
        small().forward_intermediates(torch.zeros(1, 3, 16, 16), [3, 12])


def test_without_classes_the_model_returns_the_class_token() -> None:
    model = xcit.create_model("xcit_n12", num_classes=0).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 12}, "patch_size=12: must be one of 2, 4, 8, 16, 32"),
        ({"patch_embed": "cnv"}, "patch_embed='cnv': must be one of conv, linear"),
        ({"heads": 3}, "heads=3: must divide dim=128"),
        ({"depth": 0}, "depth=0: must be a whole number of at least 1"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0: must be at least 0 and less than 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(xcit.InputError, match=message):
        xcit.create_model("xcit_n12", **options)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(xcit.InputError, match="model=xcit_s13: unknown; did you mean xcit_s12"):
        xcit.create_model("xcit_s13")


def test_cross_covariance_attention_is_equation_2() -> None:
    """Written out for each image and head, with matrices as the paper has them: V · softmax(K̂ᵀQ̂ / τ)."""
    torch.manual_seed(0)
    dim, heads, tokens = 24, 3, 7
    attention = CrossCovarianceAttention(dim, heads).double()
    with torch.no_grad():
        attention.temperature.copy_(torch.tensor([0.5, 1.0, 3.0]).view(3, 1, 1))
    x = torch.randn(2, tokens, dim, dtype=torch.float64)
    expected = torch.empty_like(x)
    for b in range(2):
        q, k, v = attention.qkv(x[b]).chunk(3, dim=-1)  # each N × C
        for h in range(heads):
            own = slice(h * dim // heads, (h + 1) * dim // heads)
            q_hat, k_hat = q[:, own] / q[:, own].norm(dim=0), k[:, own] / k[:, own].norm(dim=0)
            weights = (k_hat.T @ q_hat * attention.temperature[h]).softmax(dim=0)  # over the keys' channels
            expected[b, :, own] = v[:, own] @ weights
    torch.testing.assert_close(attention(x), attention.proj(expected), rtol=1e-5, atol=1e-6)


def test_the_position_encoding_is_the_formula() -> None:
    encoding = SinePositionEncoding(dim=64)
    with torch.no_grad():
        encoding.token_projection.weight.copy_(torch.eye(64)[:, :, None, None])
        encoding.token_projection.bias.zero_()
        encoded = encoding((3, 5))[0]
    for row in range(3):
        for column in range(5):
            y, x = (row + 1) / (3 + 1e-6) * 2 * math.pi, (column + 1) / (5 + 1e-6) * 2 * math.pi
            for channel in range(32):
                wave = math.cos if channel % 2 else math.sin
                frequency = 10000 ** (channel // 2 * 2 / 32)
                assert encoded[channel, row, column].item() == pytest.approx(wave(y / frequency), abs=1e-5)
                assert encoded[32 + channel, row, column].item() == pytest.approx(wave(x / frequency), abs=1e-5)


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = StochasticDepth(0.5)
    branch = torch.ones(4000, 3, 2)
    dropped = drop(branch)
    assert set(dropped.flatten(1).unique(dim=1).flatten().tolist()) == {0.0, 2.0}
    assert all(len(sample.unique()) == 1 for sample in dropped[:50])
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(branch), branch)


def test_drop_path_reaches_every_layer_and_no_class_attention() -> None:
    model = small(drop_path_rate=0.3)
    rates = {name: m.rate for name, m in model.named_modules() if isinstance(m, StochasticDepth)}
    assert rates == {f"blocks.{i}.drop_path": 0.3 for i in range(12)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_near_fp32(dtype: torch.dtype) -> None:
    """The tokens are so large that the sum of their squares overflows in fp16."""
    torch.manual_seed(0)
    attention = CrossCovarianceAttention(32, 4)
    x = 40 * torch.randn(1, 400, 32)
    with torch.inference_mode(), torch.autocast("cpu", dtype=dtype):
        low = attention(x).float()
    reference = attention(x).detach()
    assert torch.isfinite(low).all()
    assert (low - reference).norm() / reference.norm() < 0.05
