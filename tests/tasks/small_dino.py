"""A tiny DINO task and a batch of crops."""

from typing import Any

import torch
from torch import nn

import xcit
from data.views.multi_crop import Crops
from xcit.engine.task import Position
from xcit.tasks.dino import Dino

from ..engine.toy import target_of

RUN = Position(1, 400, 4)
SMALL = {"prototypes": 12, "hidden_dim": 8, "bottleneck_dim": 6}


def backbone(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return xcit.create_model("xcit_n12", num_classes=0, depth=1, dim=32, heads=2, patch_size=8, **options)


def task(model: nn.Module | None = None, **options: Any) -> Dino:
    torch.manual_seed(1)
    return Dino(model or backbone(), target_of(3), **(SMALL | options)).train()


def batch(images: int = 4, local_crops: int = 3) -> Crops:
    generator = torch.Generator().manual_seed(2)
    local = torch.randn(images * local_crops, 3, 16, 16, generator=generator) if local_crops else None
    return Crops(torch.randn(2 * images, 3, 32, 32, generator=generator), local)
