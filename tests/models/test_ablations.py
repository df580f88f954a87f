"""Each option of the paper's ablation removes what its name says, and the rest is a model that trains."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import Tensor, nn

import xcit
from xcit.models.cross_covariance import CrossCovarianceAttention
from xcit.models.patch_embed import LinearPatchEmbed
from xcit.models.position import LearnedPositionEncoding
from xcit.models.self_attention import SelfAttention

from .examples import tiny

BLOCK = [f"blocks.{layer}" for layer in range(2)]
CLASS = [f"cls_attn_blocks.{layer}." for layer in range(2)]

# The parameters that an option removes from XCiT and those that it adds, as prefixes of their names.
SWITCHES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "XCiT": ({}, [], []),
    "linear patches": (
        {"patch_embed": "linear"},
        ["patch_embed.proj.0.", "patch_embed.proj.2.", "patch_embed.proj.4."],
        ["patch_embed.proj.weight", "patch_embed.proj.bias"],
    ),
    "self-attention": ({"attention": "self_attention"}, [f"{b}.attn.temperature" for b in BLOCK], []),
    "no attention": (
        {"attention": "none"},
        [f"{b}.{part}" for b in BLOCK for part in ("attn.", "norm1.", "gamma1")],
        [],
    ),
    "no LPI": (
        {"lpi": False},
        [f"{b}.{part}" for b in BLOCK for part in ("local_mp.", "norm3.", "gamma3")],
        [],
    ),
    "no L2 norm": ({"l2_norm": False}, [], []),
    "no temperature": ({"temperature": False}, [f"{b}.attn.temperature" for b in BLOCK], []),
    "learned positions": (
        {"position": "learned", "image_size": 32},
        ["pos_embed.token_projection."],
        ["pos_embed.table"],
    ),
    "no positions": ({"position": "none"}, ["pos_embed."], []),
    "average pool": ({"pool": "average"}, ["cls_token", *CLASS], []),
    "one head": ({"heads": 1}, [], []),
    "all at once": (
        {"patch_embed": "linear", "attention": "none", "lpi": False, "position": "none", "pool": "average"},
        ["pos_embed.", "cls_token", "patch_embed.proj.0.", "patch_embed.proj.2.", "patch_embed.proj.4.", *CLASS]
        + [f"{b}.{part}" for b in BLOCK for part in ("attn.", "norm1.", "gamma1", "local_mp.", "norm3.", "gamma3")],
        ["patch_embed.proj.weight", "patch_embed.proj.bias"],
    ),
}
each_switch = pytest.mark.parametrize("switch", SWITCHES)


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def images_of(height: int, width: int) -> Tensor:
    return torch.randn(4, 3, height, width, generator=torch.Generator().manual_seed(0))


@each_switch
def test_a_switch_takes_out_its_parameters_and_no_others(switch: str) -> None:
    options, lost, gained = SWITCHES[switch]
    plain, changed = shapes(tiny()), shapes(tiny(**options))
    kept = {name: shape for name, shape in plain.items() if not name.startswith(tuple(lost) or "\0")}
    for prefix in lost:
        assert any(name.startswith(prefix) for name in plain), prefix
    assert changed.keys() - kept.keys() == set(gained)
    if switch == "one head":
        kept |= {f"{b}.attn.temperature": torch.Size([1, 1, 1]) for b in BLOCK}
    assert {name: changed[name] for name in kept} == kept


@each_switch
def test_one_step_lowers_the_loss_and_reaches_every_parameter(switch: str) -> None:
    model = tiny(**SWITCHES[switch][0]).train()
    images, labels = images_of(32, 32), torch.tensor([0, 1, 2, 3])
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert not [name for name, gradient in gradients.items() if gradient is None]
    assert not [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    assert not [name for name, gradient in gradients.items() if not gradient.any()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad
    assert F.cross_entropy(model(images), labels) < loss


@each_switch
@pytest.mark.parametrize("size", [(8, 8), (24, 56), (30, 41)])
def test_other_sizes_are_taken(switch: str, size: tuple[int, int]) -> None:
    model = tiny(**SWITCHES[switch][0])
    with torch.inference_mode():
        logits = model(images_of(*size))
        tokens = model.forward_features(images_of(*size))
    patches = math.ceil(size[0] / 8) * math.ceil(size[1] / 8)
    has_class_token = SWITCHES[switch][0].get("pool") != "average"
    assert logits.shape == (4, 7) and logits.isfinite().all()
    assert tokens.shape == (4, patches + has_class_token, 128)
    assert not torch.allclose(logits[0], logits[1], rtol=1e-3), "the image makes a difference"


@pytest.mark.parametrize("switch", [switch for switch in SWITCHES if switch != "XCiT"])
def test_every_switch_changes_the_function(switch: str) -> None:
    """The remaining parameters have the same values in both models."""
    plain, changed = tiny(), tiny(**SWITCHES[switch][0])
    mine = plain.state_dict()
    shared = {
        key: mine[key] if key in mine and mine[key].shape == value.shape else value
        for key, value in changed.state_dict().items()
    }
    changed.load_state_dict(shared)
    with torch.inference_mode():
        difference = (plain(images_of(32, 32)) - changed(images_of(32, 32))).abs().max()
    assert difference > 2e-5  # rounding makes 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "cross"}, "attention='cross': must be one of xca, self_attention, none"),
        ({"position": "rotary"}, "position='rotary': must be one of sine, learned, none"),
        ({"pool": "max"}, "pool='max': must be one of class_attention, average"),
        ({"patch_embed": "hybrid"}, "patch_embed='hybrid': must be one of conv, linear"),
        ({"attention": "self_attention", "l2_norm": False}, "l2_norm=False.*are options of attention='xca'"),
        ({"attention": "none", "temperature": False}, "temperature=False: are options of attention='xca'"),
        ({"heads": 0}, "heads=0: must be a whole number of at least 1"),
        ({"heads": 5}, "heads=5: must divide dim=128"),
        ({"class_depth": 0}, "class_depth=0: must be a whole number of at least 1"),
    ],
)
def test_a_wrong_value_is_refused_with_the_right_ones(options: dict, message: str) -> None:
    with pytest.raises(xcit.InputError, match=message):
        xcit.create_model("xcit_n12", **options)


def test_self_attention_is_attention_written_out() -> None:
    torch.manual_seed(0)
    attention, x = SelfAttention(24, 3).double(), torch.randn(2, 7, 24, dtype=torch.float64)
    expected = torch.empty_like(x)
    for b in range(2):
        q, k, v = attention.qkv(x[b]).chunk(3, dim=-1)
        for h in range(3):
            own = slice(8 * h, 8 * h + 8)
            expected[b, :, own] = (q[:, own] @ k[:, own].T / math.sqrt(8)).softmax(dim=-1) @ v[:, own]
    torch.testing.assert_close(attention(x), attention.proj(expected))


def test_self_attention_is_timms_with_the_same_weights() -> None:
    torch.manual_seed(0)
    theirs = Attention(24, num_heads=3, qkv_bias=True).eval()
    ours = SelfAttention(24, 3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(("l2_norm", "temperature"), [(False, True), (True, False), (False, False)])
def test_cross_covariance_attention_without_its_parts_is_the_rest_of_equation_2(
    l2_norm: bool, temperature: bool
) -> None:
    torch.manual_seed(0)
    attention = CrossCovarianceAttention(24, 3, l2_norm=l2_norm, temperature=temperature).double()
    if temperature:
        nn.init.uniform_(attention.temperature, 0.5, 2)
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    expected = torch.empty_like(x)
    for b in range(2):
        q, k, v = attention.qkv(x[b]).chunk(3, dim=-1)
        for h in range(3):
            own = slice(8 * h, 8 * h + 8)
            q_hat, k_hat = (t[:, own] / (t[:, own].norm(dim=0) if l2_norm else 1) for t in (q, k))
            weights = (k_hat.T @ q_hat * (attention.temperature[h] if temperature else 1)).softmax(dim=0)
            expected[b, :, own] = v[:, own] @ weights
    torch.testing.assert_close(attention(x), attention.proj(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attention", [SelfAttention(24, 3), CrossCovarianceAttention(24, 3)], ids=["self", "XCA"])
def test_attention_does_not_know_the_order_of_the_tokens(attention: nn.Module) -> None:
    x, order = torch.randn(2, 11, 24), torch.randperm(11)
    assert not torch.equal(order, torch.arange(11))
    torch.testing.assert_close(attention(x[:, order]), attention(x)[:, order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["xca", "self_attention", "none"])
def test_without_positions_and_neighbors_the_order_of_patches_does_not_matter(attention: str) -> None:
    """Without positions and LPI the model ignores the order of the patches; with either of them it does not."""
    images = images_of(32, 32)
    order = torch.tensor([2, 0, 3, 1])
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8)  # (B, 3, 4, 4, 8, 8)
    shuffled = patches[:, :, order][:, :, :, order].permute(0, 1, 2, 4, 3, 5).reshape(images.shape)
    blind = {"attention": attention, "patch_embed": "linear", "position": "none", "lpi": False}
    with torch.inference_mode():
        for more, matters in (({}, False), ({"position": "sine"}, True), ({"lpi": True}, True)):
            model = tiny(**blind | more)
            near = torch.allclose(model(images), model(shuffled), rtol=1e-4, atol=1e-4)
            assert near is not matters, more


def test_average_pooling_is_the_mean_of_the_normalized_patches() -> None:
    model = tiny(pool="average")
    with torch.inference_mode():
        tokens = model.forward_features(images_of(24, 32))
        assert torch.equal(model(images_of(24, 32)), model.head(tokens.mean(dim=1)))


def test_learned_positions_at_their_own_grid_are_the_table() -> None:
    model = tiny(position="learned", image_size=40, patch_embed="linear")
    position = model.pos_embed
    assert isinstance(position, LearnedPositionEncoding)
    assert position.table.shape == (1, 128, 5, 5)
    assert torch.equal(position((5, 5)), position.table)
    assert position((3, 9)).shape == (1, 128, 3, 9)
    with torch.inference_mode():
        tokens, grid = model.embed(images_of(40, 40))
        maps = model.patch_embed(images_of(40, 40))
    assert grid == (5, 5)
    torch.testing.assert_close(tokens, (maps + position.table).flatten(2).mT)


def test_learned_positions_elsewhere_are_resampled_smoothly() -> None:
    position = LearnedPositionEncoding(1, (8, 8))
    ramp = torch.arange(8.0)[:, None].expand(8, 8)
    with torch.no_grad():
        position.table.copy_(ramp)
        grown = position((16, 16))[0, 0]
    assert torch.allclose(grown, grown[:, :1], atol=1e-5), "an axis that does not change still does not"
    assert (grown[1:, 0] > grown[:-1, 0]).all()
    torch.testing.assert_close(grown[4:12, 0], (torch.arange(4.0, 12) + 0.5) / 2 - 0.5, atol=0.05, rtol=0)


def test_the_linear_projection_is_one_matrix_for_each_patch() -> None:
    embed = LinearPatchEmbed(4, 3, 10).double()
    image = torch.randn(1, 3, 8, 12, dtype=torch.float64)
    out = embed(image)
    for row in range(2):
        for column in range(3):
            patch = image[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            expected = embed.proj.weight.flatten(1) @ patch.flatten() + embed.proj.bias
            torch.testing.assert_close(out[0, :, row, column], expected)
