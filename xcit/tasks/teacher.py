"""A trained model that another learns from."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, given_as
from ..models import create_model
from ..preprocessing import DataSettings, data_settings, told
from ..storage import load_exactly
from ..weights.loading import read_weights


class Teacher:
    """One of timm's models, in evaluation mode and without gradients, fed with the images as it is used to them.

    It is no module, so that it is no part of its student: not in checkpoints, not in the EMA, not in DDP.

    Args:
        name: one of timm's (XCiT's are xcit_small_12_p16_224 and so on).
        num_classes: those of the student; a teacher of any other number is refused.
        weights: whatever `load_weights` takes; None for the weights that timm's name stands for.
        image_size: pixels to which the images are resized for it; None for the size that it is made for.
        student: the settings by which the images that come in are normalised.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        *,
        weights: str | None,
        image_size: int | None,
        student: DataSettings,
        device: torch.device,
    ) -> None:
        try:
            known = num_classes if weights else trained_classes(name)
            if known != num_classes:
                raise InputError(
                    f"task.teacher={name}: tells {known} classes apart, the data have {num_classes}; "
                    "give the weights of one that knows them with task.teacher_weights"
                )
            model = create_model(
                "timm", name=name, num_classes=num_classes, image_size=image_size, pretrained=not weights
            )
        except InputError as error:
            raise InputError(str(error).replace("model.name=", "task.teacher=", 1)) from None
        if weights:
            load_whole(model, weights)
        self.settings = data_settings(model)
        self.model = model.eval().requires_grad_(False).to(device)
        self.student, self.image_size = student, image_size or self.settings.image_size

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits, (B, num_classes), of the student's images, (B, 3, H, W)."""
        return self.model(self.as_used_to(images))

    def as_used_to(self, images: Tensor) -> Tensor:
        """The student's images, in the teacher's normalisation and size."""
        mine, theirs = self.settings, self.student
        if (mine.mean, mine.std) != (theirs.mean, theirs.std):
            in_unit_range = images * channels(theirs.std, images) + channels(theirs.mean, images)
            images = (in_unit_range - channels(mine.mean, images)) / channels(mine.std, images)
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        return images


def channels(values: Sequence[float], like: Tensor) -> Tensor:
    return like.new_tensor(values)[:, None, None]


def load_whole(model: nn.Module, weights: str) -> None:
    """Load weights, classifier included: a teacher whose classifier starts anew teaches noise."""
    with given_as("task.teacher_weights"):
        whole = read_weights(weights)
        load_exactly(model, whole.state(), whole.origin)


def trained_classes(name: str) -> int:
    """How many classes the weights are for that timm's name stands for; nothing is fetched for it."""
    with torch.device("meta"):
        return int(told(create_model("timm", name=name)).get("num_classes", 1000))
