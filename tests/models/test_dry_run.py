"""A dry run finds what the model cannot be trained on, before work begins."""

import pytest

from xcit.engine.freezing import freeze
from xcit.errors import InputError
from xcit.models.dry_run import dry_run, require_statistics

XCIT = ("xcit_n12", {"depth": 1})


@pytest.mark.parametrize(
    ("name", "options", "images", "size", "is_enough"),
    [
        (*XCIT, 1, 16, False),
        (*XCIT, 2, 16, True),
        (*XCIT, 1, 32, True),
        ("timm", {"name": "resnet18"}, 1, 32, False),
        ("timm", {"name": "resnet18"}, 1, 64, True),
        ("timm", {"name": "vit_tiny_patch16_224", "image_size": 16}, 1, 16, True),
    ],
)
def test_an_image_that_is_too_small_for_batchnorm_is_refused(
    name: str, options: dict, images: int, size: int, is_enough: bool
) -> None:
    model = dry_run(name, options, {})
    if is_enough:
        require_statistics(model, images, size, frozen=False)
    else:
        with pytest.raises(
            InputError, match=f"^train.global_batch_size: at {size} pixels the model needs at least 2 im"
        ):
            require_statistics(model, images, size, frozen=False)
    assert not any(module.training for module in model.modules())


def test_frozen_batchnorms_take_no_statistics() -> None:
    require_statistics(dry_run(*XCIT, {}), 1, 16, frozen=True)
    model = dry_run(*XCIT, {})
    freeze(model, ["patch_embed", "blocks"])
    require_statistics(model, 1, 16, frozen=False)
    model = dry_run(*XCIT, {})
    freeze(model, ["patch_embed"])
    with pytest.raises(InputError):
        require_statistics(model, 1, 16, frozen=False)
