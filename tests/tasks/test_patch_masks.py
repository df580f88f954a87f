"""Masked patches: their share, and that nothing of them is seen."""

import pytest
import torch

from xcit.errors import InputError
from xcit.tasks.dino import Dino
from xcit.tasks.patch_masks import hide_blocks, hide_patches

from .small_dino import backbone


def test_half_of_the_images_hide_the_share() -> None:
    torch.manual_seed(0)
    masks = hide_blocks(200, (6, 7), 0.3, torch.device("cpu")).masks(200, (6, 7))
    hidden = masks.flatten(1).sum(dim=1)
    assert set(hidden.tolist()) == {0, round(0.3 * 42)} and (hidden > 0).sum() == 100
    neighbors = (masks[:, :, 1:] & masks[:, :, :-1]).sum() / masks.sum()
    assert neighbors > 0.45, "patches are hidden in blocks; by chance it would be 0.26"


@pytest.mark.parametrize(("height", "width"), [(32, 48), (30, 41)])
def test_hidden_patches_have_no_influence(height: int, width: int) -> None:
    """The stem of an XCiT sees beyond a patch, so the pixels are hidden, not the tokens."""
    model = backbone().eval()
    images = torch.randn(2, 3, height, width)
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0, 1, 2] = masks[1, 3, 5] = True
    changed = images.clone()
    changed[0, :, 8:16, 16:24] += 1
    changed[1, :, 24:32, 40:48] += 1
    assert not torch.equal(model(images), model(changed))
    torch.testing.assert_close(
        model(hide_patches(images, masks, 8)), model(hide_patches(changed, masks, 8)), rtol=0, atol=0
    )


def test_a_patch_loss_with_simdino_is_refused() -> None:
    with pytest.raises(InputError, match=r"task\.patch_loss=1\.0: must be 0 with task\.loss=simdino"):
        Dino.check_options({"loss": "simdino", "patch_loss": 1.0}, {})
