"""Distillation: a trained teacher has a say beside the labels (DeiT, arXiv 2012.12877, section 4)."""

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..errors import InputError
from ..preprocessing import data_settings
from .classify import Classify, Loss
from .teacher import Teacher


class Distill(Classify):
    """(1 - alpha) × the classification loss + alpha × the distance from the teacher.

    Options:
        teacher: one of timm's models, xcit_* among them; the paper's is RegNetY-160.
        teacher_weights: what it knows: a file, a run folder, a published name; null for the weights of timm's name.
        teacher_image_size: pixels; null for the size that it is made for.
        kind: "hard", cross-entropy with the class that the teacher finds likeliest, as in the paper; or "soft",
            tau² × the Kullback-Leibler divergence of the two distributions at temperature tau.

    There is no distillation token: the class token learns from both, as in the paper.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        *,
        loss: Loss = "cross_entropy",
        teacher: str = "regnety_160.deit_in1k",
        teacher_weights: str | None = None,
        teacher_image_size: Annotated[int, Field(ge=1)] | None = None,
        kind: Literal["hard", "soft"] = "hard",
        alpha: Annotated[float, Field(ge=0, le=1)] = 0.5,
        tau: Annotated[float, Field(gt=0)] = 1.0,
    ) -> None:
        super().__init__(model, num_classes, loss=loss)
        self.num_classes, self.kind, self.alpha, self.tau = num_classes, kind, alpha, tau
        self.teacher_name, self.teacher_weights, self.teacher_image_size = teacher, teacher_weights, teacher_image_size
        self.teacher: Teacher | None = None

    def begin_training(self, device: torch.device) -> None:
        self.teacher = Teacher(
            self.teacher_name,
            self.num_classes,
            weights=self.teacher_weights,
            image_size=self.teacher_image_size,
            student=data_settings(self.model),
            device=device,
        )

    def forward(self, batch: Any) -> Tensor:
        if self.teacher is None:
            raise InputError("task=distill: begin_training must come before the first batch")
        logits = self.model(batch.images)
        taught = self.distance(logits, self.teacher(batch.images))
        return (1 - self.alpha) * self.classification_loss(logits, batch.targets) + self.alpha * taught

    def distance(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """How far the student is from the teacher; both are logits, (B, num_classes)."""
        if self.kind == "hard":
            return F.cross_entropy(logits, teacher.argmax(dim=1))
        student, wanted = (x.float().div(self.tau).log_softmax(dim=1) for x in (logits, teacher))
        return self.tau**2 * F.kl_div(student, wanted, reduction="batchmean", log_target=True)
