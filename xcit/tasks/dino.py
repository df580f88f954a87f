"""DINO: a student learns the output of its own moving average on other crops of the same image. It needs no labels.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", arXiv 2104.14294.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..engine import distributed
from ..engine.schedule import cosine
from ..engine.task import Losses, Position, Target, Task
from ..errors import InputError
from ..evaluation.collapse import entropy, feature_std
from ..models.stochastic_depth import switch_off_dropout
from ..number_types import NonNegative, PositiveFloat, PositiveInt, Share
from .dino_head import DinoHead
from .dino_loss import centered, coding_rate_loss, cross_view_entropy, koleo, masked_patch_entropy, sinkhorn
from .dino_validation import FrozenFeatures, signs_of_collapse
from .patch_masks import HiddenPatches, hide_blocks, hide_patches

FIRST_TEMPERATURE = 0.04
GLOBAL_CROPS = 2


class Network(nn.Module):
    """A backbone with DINO's head."""

    def __init__(self, backbone: nn.Module, head: DinoHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head


class Dino(Task):
    """The student is `model` with `head`; the teacher is the moving average of both, and what others load.

    Args:
        loss: What is compared: scores of prototypes (dino), or features with a high coding rate (simdino). The latter
            needs neither centering nor sharpening (arXiv 2502.10385).
        prototypes: Number of prototypes, the outputs of the head; loss=simdino has none.
        hidden_dim: Width of the head's hidden layers.
        bottleneck_dim: Width of the features that are compared with the prototypes.
        batch_norm: Whether the head has BatchNorm.
        norm_last_layer: Whether the prototypes keep length 1, which is more stable.
        freeze_last_layer: Epochs at the start in which the prototypes do not learn.
        centering: What keeps the teacher from one output for all images: center, sinkhorn or none. DINO has center,
            SwAV and DINOv2 have sinkhorn.
        center_momentum: Momentum per update of the center, for centering=center.
        student_temperature: Temperature of the student.
        teacher_temperature: Temperature of the teacher after its warm-up, which starts at 0.04.
        teacher_warmup_epochs: Epochs in which the teacher's temperature rises.
        momentum: Share of itself that the teacher keeps in the first update; it rises to 1 along a cosine.
        koleo: Weight of KoLeo, which keeps the images of a batch apart (DINOv2: 0.1); 0: off.
        patch_loss: Weight of iBOT's loss: the student predicts the teacher's output for hidden patches; 0: off.
        mask_ratio: Share of the patches that is hidden, in half of the images, for patch_loss.
        coding_rate: Weight of the coding rate, for loss=simdino.
        coding_rate_eps: Distortion that the coding rate allows, for loss=simdino.
    """

    view = "multi_crop"
    augment = "multi_crop"
    target_kinds = ("class", "none")
    headline = "knn_val_top1"
    backbone = "teacher.backbone"
    networks: ClassVar = {"student": "model", "teacher": "teacher.backbone"}
    on_training_line = ("teacher_entropy", "batch_entropy", "feature_std")
    on_validation_line = ("rankme",)

    def __init__(
        self,
        model: nn.Module,
        target: Target,
        *,
        loss: Literal["dino", "simdino"] = "dino",
        prototypes: PositiveInt = 65536,
        hidden_dim: PositiveInt = 2048,
        bottleneck_dim: PositiveInt = 256,
        batch_norm: bool = False,
        norm_last_layer: bool = True,
        freeze_last_layer: NonNegative = 1.0,
        centering: Literal["center", "sinkhorn", "none"] = "center",
        center_momentum: Share = 0.9,
        student_temperature: PositiveFloat = 0.1,
        teacher_temperature: PositiveFloat = 0.07,
        teacher_warmup_epochs: Annotated[int, Field(ge=0)] = 30,
        momentum: Share = 0.996,
        koleo: NonNegative = 0.0,
        patch_loss: NonNegative = 0.0,
        mask_ratio: Share = 0.3,
        coding_rate: NonNegative = 1.0,
        coding_rate_eps: PositiveFloat = 0.5,
    ) -> None:
        super().__init__(model, target)
        self.loss, self.centering, self.center_momentum = loss, centering, center_momentum
        self.freeze_last_layer, self.norm_last_layer, self.momentum = freeze_last_layer, norm_last_layer, momentum
        self.student_temperature = student_temperature
        self.last_temperature, self.warmup_epochs = teacher_temperature, teacher_warmup_epochs
        self.koleo, self.patch_loss, self.mask_ratio = koleo, patch_loss, mask_ratio
        self.coding_rate, self.coding_rate_eps = coding_rate, coding_rate_eps
        if patch_loss and not (hasattr(model, "num_prefix_tokens") and hasattr(model, "forward_features")):
            raise InputError(f"task.patch_loss={patch_loss}: {type(model).__name__} has no patch tokens; must be 0")
        self.head = DinoHead(
            model.num_features,  # type: ignore[arg-type]
            prototypes if loss == "dino" else 0,
            hidden_dim=hidden_dim,
            bottleneck_dim=bottleneck_dim,
            batch_norm=batch_norm,
            norm_last_layer=norm_last_layer,
        )
        # As in DINO, the teacher has no drop path, and its BatchNorms use the statistics of its own batches.
        self.teacher = Network(deepcopy(model), deepcopy(self.head)).requires_grad_(False)
        switch_off_dropout(self.teacher)
        self.center: Tensor
        self.teacher_temperature: Tensor
        self.has_warned = False
        self.outputs_seen: dict[str, list[Tensor]] = {}  # center → the mean outputs of the passes of this update
        self.register_buffer("center", torch.zeros(self.outputs))
        self.register_buffer("patch_center", torch.zeros(self.outputs))
        self.register_buffer("teacher_temperature", torch.tensor(self.temperature_in(0)))

    @property
    def outputs(self) -> int:
        """The number of prototypes; 0 if there are none."""
        return 0 if self.head.prototypes is None else len(self.head.prototypes)

    @classmethod
    def num_outputs(cls, target: Target) -> int:
        return 0

    @classmethod
    def headline_for(cls, target: Target) -> str:
        return cls.headline if target.kind == "class" else "rankme"

    @classmethod
    def check_options(cls, options: Mapping[str, Any], view_options: Mapping[str, Any]) -> None:
        if options.get("loss") == "simdino" and options.get("patch_loss"):
            raise InputError(
                f"task.patch_loss={options['patch_loss']}: must be 0 with task.loss=simdino, which has no prototypes"
            )

    # The losses of a batch.

    def forward(self, batch: Any) -> Losses:
        images = len(batch.global_crops) // GLOBAL_CROPS
        hidden, masked_crops = None, batch.global_crops
        if self.patch_loss:
            grid = [-(-side // self.patch_size) for side in batch.global_crops.shape[-2:]]
            hidden = hide_blocks(len(batch.global_crops), grid, self.mask_ratio, batch.global_crops.device)
            masked_crops = hide_patches(batch.global_crops, hidden.masks(len(masked_crops), grid), self.patch_size)

        # The teacher sees the global crops. The student sees all crops, those of one size in one pass, and its head
        # all of them together.
        with torch.no_grad():
            features, patches = self.features(self.teacher.backbone, batch.global_crops, hidden)
            outputs = self.teacher.head(features).unflatten(0, (GLOBAL_CROPS, images))
            patch_outputs = None if patches is None else self.teacher.head(patches)
        student, student_patches = self.features(self.model, masked_crops, hidden)
        crops = [student] if batch.local_crops is None else [student, self.features(self.model, batch.local_crops)[0]]
        scores = self.head(torch.cat(crops)).unflatten(0, (-1, images))
        patch_scores = None if student_patches is None else self.head(student_patches)

        # Losses and statistics in fp32: under autocast, their products of matrices would be in half precision.
        with torch.autocast(scores.device.type, enabled=False):
            losses, probabilities = self.compare(outputs, scores)
            if self.koleo:
                losses["koleo"] = koleo(student.unflatten(0, (GLOBAL_CROPS, images)))
                losses["loss"] = losses["loss"] + self.koleo * losses["koleo"]
            if patch_outputs is not None and patch_scores is not None:
                # iBOT takes the mean over all images; those without hidden patches count as 0.
                losses["patch_loss"] = (
                    self.compare_patches(patch_outputs, patch_scores) * len(patch_scores) / len(student)
                )
                losses["loss"] = losses["loss"] + self.patch_loss * losses["patch_loss"]
            return losses | self.collapse_measures(features, probabilities)

    def features(
        self, backbone: Any, images: Tensor, hidden: HiddenPatches | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The features of images, (B, C), and of their hidden patches, (M, k, C), if there are any."""
        if hidden is None:
            return backbone(images), None
        tokens = backbone.forward_features(images)
        patches = hidden.of(tokens[:, backbone.num_prefix_tokens :])
        return backbone.forward_head(tokens, pre_logits=True), patches

    def compare(self, outputs: Tensor, scores: Tensor) -> tuple[Losses, Tensor | None]:
        """The loss between crops, and the teacher's probabilities, (2, B, K).

        outputs: the teacher's, (2, B, K). scores: the student's, (V, B, K).
        """
        if self.loss == "simdino":
            return {"loss": coding_rate_loss(outputs, scores, self.coding_rate_eps, self.coding_rate)}, None
        probabilities = self.probabilities(outputs, "center")
        return {"loss": cross_view_entropy(probabilities, scores, self.student_temperature)}, probabilities

    def compare_patches(self, outputs: Tensor, scores: Tensor) -> Tensor:
        """iBOT's loss of the hidden patches; the head is that of the class token. Both are (M, k, K)."""
        probabilities = self.probabilities(outputs, "patch_center")
        return masked_patch_entropy(probabilities, scores, self.student_temperature)

    def probabilities(self, outputs: Tensor, center: str) -> Tensor:
        """The teacher's probabilities: (…, K) → (…, K). In training they are noted for the next center."""
        if self.training and self.centering == "center":
            self.outputs_seen.setdefault(center, []).append(outputs.flatten(0, -2).mean(dim=0))
        if self.centering == "sinkhorn":
            return sinkhorn(outputs, self.teacher_temperature)
        return centered(outputs, self.get_buffer(center), self.teacher_temperature)  # the center may stay 0

    @property
    def patch_size(self) -> int:
        """The backbone's patch size in pixels."""
        info: Any = self.model.feature_info
        return int(info[-1]["reduction"])

    @torch.no_grad()
    def collapse_measures(self, features: Tensor, probabilities: Tensor | None) -> Losses:
        """Measures of collapse for this batch. The spread is that of this process's features."""
        measures = {"feature_std": feature_std(features)}
        if probabilities is not None:
            flat = probabilities.flatten(0, 1)
            mean = distributed.total(flat.mean(dim=0)) / distributed.world_size()
            measures |= {"teacher_entropy": entropy(flat).mean(), "batch_entropy": entropy(mean)}
        return measures

    # The hooks.

    def before_step(self, position: Position, optimizer: torch.optim.Optimizer) -> None:
        if position.epoch < self.freeze_last_layer:
            for parameter in self.head.last_layer():
                parameter.grad = None

    @torch.no_grad()
    def after_update(self, position: Position) -> None:
        """The teacher follows the student, the centers follow the teacher's outputs, and its temperature rises."""
        done = (position.update - 1) / position.num_updates
        share = 1 - cosine(self.momentum, 1.0, done)
        teacher: list[Tensor] = list(self.teacher.parameters())
        student: list[Tensor] = [*self.model.parameters(), *self.head.parameters()]
        torch._foreach_lerp_(teacher, student, share)
        for name, means in self.outputs_seen.items():  # of each pass of this update
            mean = distributed.total(torch.stack(means).mean(dim=0)) / distributed.world_size()
            self.get_buffer(name).lerp_(mean, 1 - self.center_momentum)
        self.outputs_seen.clear()
        self.teacher_temperature.fill_(self.temperature_in(int(position.epoch)))

    def temperature_in(self, epoch: int) -> float:
        """The teacher's temperature in an epoch, from 0. It rises by equal steps and is the last one from the last
        epoch of the warm-up."""
        share = min(1.0, epoch / max(1, self.warmup_epochs - 1)) if self.warmup_epochs else 1.0
        return FIRST_TEMPERATURE + (self.last_temperature - FIRST_TEMPERATURE) * share

    # The validation.

    def evaluator(self) -> FrozenFeatures:
        # Sinkhorn-Knopp needs the batches of all processes, so a validation has no such outputs.
        has_outputs = self.loss == "dino" and self.centering != "sinkhorn"
        return FrozenFeatures(self.teacher.backbone, self.outputs_for if has_outputs else None)

    def outputs_for(self, features: Tensor) -> Tensor:
        """The teacher's probabilities for features of its backbone: (B, C) → (B, K)."""
        return self.probabilities(self.teacher.head(features), "center")

    def advise(self, measured: Mapping[str, float], position: Position) -> list[str]:
        signs = signs_of_collapse(measured, position, self.outputs)
        if not signs or self.has_warned:
            return []
        self.has_warned = True
        return [f"collapse: {'; '.join(signs)}; what usually helps: {', '.join(self.remedies())}"]

    def remedies(self) -> list[str]:
        """What usually helps against a collapse, without what is set already."""
        found = []
        if self.loss == "simdino":
            found += [f"a larger task.coding_rate ({self.coding_rate:g} now)"]
        else:
            found += ["task.centering=center"] if self.centering == "none" else []
            found += ["task.centering=sinkhorn"] if self.centering != "sinkhorn" else []
            lower = self.last_temperature > FIRST_TEMPERATURE and self.centering != "none"
            found += [f"task.teacher_temperature={FIRST_TEMPERATURE}"] if lower else []
            found += [] if self.norm_last_layer else ["task.norm_last_layer=true"]
            found += ["task.loss=simdino"]
        found += [] if self.koleo else ["task.koleo=0.1"]
        return [*found, "a lower optim.lr", "a larger batch"]
