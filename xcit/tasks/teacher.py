"""A trained model that another one learns from."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, given_as
from ..models import create_model
from ..preprocessing import Preprocessing, pretrained_cfg
from ..storage import load_exactly
from ..weights.loading import read_weights


class Teacher:
    """One of timm's models, in evaluation mode and without gradients. It gets images in its own normalization and size.

    It is not a Module, so that it is no part of its student: not in checkpoints, not in the EMA, not in DDP.

    Args:
        name: one of timm's models (XCiTs are xcit_small_12_p16_224 and so on).
        num_classes: the student's; a teacher with another number is refused.
        weights: whatever `load_weights` takes; None for the pretrained weights of timm's name.
        image_size: pixels to which the images are resized for the teacher; None for the size it was trained at.
        student: the preprocessing of the images that come in.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        *,
        weights: str | None,
        image_size: int | None,
        student: Preprocessing,
        device: torch.device,
    ) -> None:
        try:
            known = num_classes if weights else trained_classes(name)
            if known != num_classes:
                raise InputError(
                    f"task.teacher={name}: has {known} classes, the data have {num_classes}; "
                    "task.teacher_weights= takes weights that were trained on these classes"
                )
            model = create_model(
                "timm", name=name, num_classes=num_classes, image_size=image_size, pretrained=not weights
            )
        except InputError as error:
            raise InputError(str(error).replace("model.name=", "task.teacher=", 1)) from None
        if weights:
            load_whole(model, weights)
        self.preprocessing = Preprocessing.of_model(model)
        self.model = model.eval().requires_grad_(False).to(device)
        self.size = (image_size, image_size) if image_size else self.preprocessing.size
        mine, theirs = self.preprocessing, student
        self.normalizes_alike = (mine.mean, mine.std) == (theirs.mean, theirs.std)
        # On the device from the start: to copy them for each batch would wait for the GPU.
        self.mine, self.theirs = (
            [torch.tensor(values, device=device)[:, None, None] for values in (of.mean, of.std)]
            for of in (mine, theirs)
        )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits, (B, num_classes), of the student's images, (B, 3, H, W)."""
        return self.model(self.convert(images))

    def convert(self, images: Tensor) -> Tensor:
        """The student's images in the teacher's normalization and size."""
        if not self.normalizes_alike:
            (mean, std), (mean_of_student, std_of_student) = self.mine, self.theirs
            images = (images * std_of_student + mean_of_student - mean) / std
        if images.shape[-2:] != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
        return images


def load_whole(model: nn.Module, weights: str) -> None:
    """Load weights, classifier included: a teacher with a fresh classifier would teach noise."""
    with given_as("task.teacher_weights"):
        whole = read_weights(weights)
        load_exactly(model, whole.state(), whole.origin)


def trained_classes(name: str) -> int:
    """The number of classes of the pretrained weights of timm's name; nothing is fetched."""
    with torch.device("meta"):
        return int(pretrained_cfg(create_model("timm", name=name)).get("num_classes", 1000))
