"""Distillation: the model learns from a trained teacher and from the labels (DeiT, arXiv 2012.12877, section 4)."""

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..engine.task import Losses, Target
from ..errors import InputError
from ..number_types import PositiveInt, Share
from ..preprocessing import Preprocessing
from .classify import Classify, Loss
from .teacher import Teacher


class Distill(Classify):
    """(1 - alpha) × the classification loss + alpha × the distance from the teacher.

    Args:
        loss: Loss of the labels: cross_entropy, or binary_cross_entropy with augment.label_smoothing=0.
        teacher: Any model of timm, XCiT among them. The paper's is RegNetY-160.
        teacher_weights: A file, a run folder or a published name; null: timm's weights for the teacher's name.
        teacher_image_size: The teacher's image size in pixels; null: the size that it was trained at. conf/task gives
            it data.image_size: the teacher sees what the student sees, as in the authors' runs.
        kind: What the student learns: the teacher's most likely class (hard) or its distribution (soft). "hard" is the
            cross-entropy with this class, as in the paper, and "soft" is tau² × the Kullback-Leibler divergence of
            the two distributions at temperature tau.
        alpha: Weight of the teacher's loss; the loss of the labels has 1 - alpha.
        tau: Temperature of both distributions, for kind=soft.
        divide_by: For kind=soft, the number by which the summed loss is divided. The code of the authors and
            of DeiT divides by images_and_classes.

    There is no distillation token: the class token learns from both, as in the paper. The losses "classification" and
    "distillation" are reported beside the weighted sum. Weights of images count in the first alone.
    """

    def __init__(
        self,
        model: nn.Module,
        target: Target,
        *,
        loss: Loss = "cross_entropy",
        teacher: str = "regnety_160.deit_in1k",
        teacher_weights: str | None = None,
        teacher_image_size: PositiveInt | None = None,
        kind: Literal["hard", "soft"] = "hard",
        alpha: Share = 0.5,
        tau: Annotated[float, Field(gt=0)] = 1.0,
        divide_by: Literal["images", "images_and_classes"] = "images",
    ) -> None:
        super().__init__(model, target, loss=loss)
        self.kind, self.alpha, self.tau, self.divide_by = kind, alpha, tau, divide_by
        self.teacher_name, self.teacher_weights, self.teacher_image_size = teacher, teacher_weights, teacher_image_size
        self.teacher: Teacher | None = None
        self.input = Preprocessing.of_model(model)
        """What the student gets; the teacher gets the same pixels in its own normalization."""

    def preprocessing(self, of_model: Preprocessing) -> Preprocessing:
        if of_model.channels != 3:
            raise InputError(f"data.channels={of_model.channels}: must be 3 with task=distill; its teacher takes RGB")
        self.input = of_model
        return of_model

    def begin_training(self, device: torch.device) -> None:
        self.teacher = Teacher(
            self.teacher_name,
            len(self.target.classes),
            weights=self.teacher_weights,
            image_size=self.teacher_image_size,
            student=self.input,
            device=device,
        )

    def forward(self, batch: Any) -> Losses:
        if self.teacher is None:
            raise InputError("task=distill: begin_training must come before the first batch")
        logits = self.model(batch.images)
        classification = self.classification_loss(logits, batch)
        distillation = self.distance(logits, self.teacher(batch.images))
        return {
            "loss": (1 - self.alpha) * classification + self.alpha * distillation,
            "classification": classification.detach(),
            "distillation": distillation.detach(),
        }

    def distance(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """The distillation loss, a scalar; student and teacher are logits, (B, num_classes)."""
        if self.kind == "hard":
            return F.cross_entropy(logits, teacher.argmax(dim=1))
        student, wanted = (x.float().div(self.tau).log_softmax(dim=1) for x in (logits, teacher))
        divergence = F.kl_div(student, wanted, reduction="sum", log_target=True)
        return self.tau**2 * (divergence / (len(student) if self.divide_by == "images" else student.numel()))
