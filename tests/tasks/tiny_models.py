"""A teacher that records its images, and a student for it."""

from torch import Tensor, nn

TEACHER_MEAN, TEACHER_STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)


class Recorder(nn.Module):
    """A teacher with BatchNorm and dropout that records its input images.

    Its preprocessing differs from the student's: another mean, another standard deviation, 24 × 24 pixels.
    """

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(3, classes)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.images: list[Tensor] = []
        self.pretrained_cfg = {
            "input_size": (3, 24, 24),
            "mean": TEACHER_MEAN,
            "std": TEACHER_STD,
            "num_classes": classes,
            "classifier": "head",
        }

    def forward(self, images: Tensor) -> Tensor:
        self.images.append(images)
        return self.head(self.drop(self.norm(images)).mean(dim=(2, 3)))


class Student(nn.Module):
    """A tiny model with the default preprocessing, which is ImageNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(images).mean(dim=(2, 3)))
