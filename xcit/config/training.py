"""The sections optim and train of the configuration: the optimizer, its schedule, and the loop."""

import re
import warnings
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ..errors import InputError, Notice
from ..number_types import NonNegative, PositiveFloat, PositiveInt
from .sections import Section


def as_hours(value: Any) -> Any:
    """The hours in a text such as "1:30:00" or "1:30"; other values stay what they are."""
    if not isinstance(value, str):
        return value
    parts = re.fullmatch(r"(\d+):([0-5]\d)(?::([0-5]\d))?", value)
    if not parts:
        raise ValueError('must be a number of hours greater than 0, a time such as "1:30:00", or null')
    hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return hours + minutes / 60 + seconds / 3600


Auto = Literal["auto"]
"""A number that follows from the number of training images; see `LoopConfig.scaled`."""
Hours = Annotated[PositiveFloat, BeforeValidator(as_hours)]
Precision = Literal["fp32", "bf16", "fp16"]


MOST_IMAGES_PER_UPDATE, FEWEST_EPOCHS, FEWEST_UPDATES = 512, 100, 1_000
"""What "auto" means in train.global_batch_size and train.epochs."""


class OptimConfig(Section):
    """conf/optim: the optimizer and the learning rate schedule."""

    name: str
    """Any optimizer of timm, except those that need a closure or an extra package."""
    lr: PositiveFloat
    """Peak learning rate for a global batch of 512; it is scaled by train.global_batch_size / 512."""
    weight_decay: NonNegative
    """Weight decay; norms, biases, class token and LayerScale have none. For temperatures see decay_temperature."""
    weight_decay_end: NonNegative | None = None
    """Weight decay at the end of the run, reached along a cosine; null: constant."""
    options: dict[str, Any]
    """Further arguments of the optimizer."""
    clip_norm: PositiveFloat | None
    """Largest norm of the gradients; null: no clipping."""
    clip_by: Literal["all", "each"] = "all"
    """Gradients of which clip_norm limits the norm: all parameters together, or each parameter, as in DINO."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Learning rate of a layer, relative to the layer above it, such as 0.75; null: the same for all."""
    schedule: Literal["cosine", "step", "poly"] = "cosine"
    """How the learning rate falls: cosine, step (see milestones) or poly (polynomial, see power)."""
    milestones: list[PositiveFloat] = Field(default_factory=list)
    """Epochs after which the learning rate is multiplied by decay_rate, for schedule=step."""
    decay_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of the learning rate at each of the milestones, for schedule=step."""
    power: PositiveFloat = 1.0
    """Exponent of schedule=poly; 1 is linear."""
    warmup_epochs: NonNegative
    """Epochs at the start in which the learning rate rises linearly; part of the run's length."""
    warmup_updates: Annotated[int, Field(ge=0)] | None = None
    """Length of the warm-up in updates, instead of warmup_epochs; null: warmup_epochs sets it."""
    warmup_lr: NonNegative
    """Learning rate at the start of the warm-up."""
    cooldown_epochs: NonNegative
    """Epochs at the end with the learning rate min_lr; part of the run's length."""
    min_lr: NonNegative
    """Learning rate at the end."""
    lr_every: Literal["update", "epoch"] = "update"
    """When the learning rate changes: each update, or each epoch and one epoch late, as in the authors' runs."""
    warmup_prefix: bool = False
    """Whether the cosine starts after the warm-up, as in DINO, instead of at update 0."""
    decay_temperature: bool = False
    """Whether the temperatures of XCA have weight decay, too, as in the authors' runs."""

    @property
    def optimizer(self) -> dict[str, Any]:
        """The arguments of `make_optimizer`, without the learning rate."""
        return self.model_dump(include={"name", "weight_decay", "options", "layer_decay", "decay_temperature"})

    @property
    def schedule_options(self) -> dict[str, Any]:
        """The arguments of `make_schedule`."""
        of_rate = {"schedule", "milestones", "decay_rate", "power", "cooldown_epochs", "min_lr", "lr_every"}
        of_warmup = {"warmup_epochs", "warmup_updates", "warmup_lr", "warmup_prefix"}
        return self.model_dump(include=of_rate | of_warmup | {"weight_decay_end"})

    @model_validator(mode="after")
    def milestones_go_with_steps(self) -> "OptimConfig":
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError(f"milestones={self.milestones}: must hold epochs if optim.schedule is step, and only then")
        if self.milestones != sorted(self.milestones):
            raise ValueError(f"milestones={self.milestones}: must rise")
        if self.schedule != "cosine" and self.lr_every == "epoch":
            raise ValueError(f"lr_every=epoch: is for optim.schedule=cosine, not {self.schedule}")
        return self


OF_TRAINER = {"precision", "global_batch_size", "accumulate", "cuda_graph", "log_every", "max_time"}


class LoopConfig(Section):
    """train.*: the loop."""

    epochs: PositiveInt | Auto | None = None
    """Passes over the training images; auto: 100, or more until there are 1,000 updates."""
    updates: PositiveInt | None = None
    """Length of the run in updates, instead of train.epochs; null: train.epochs sets it."""
    global_batch_size: PositiveInt | Auto
    """Images per update, over all processes; auto: at most 512 and half of the training images."""
    batch_size: Auto | None = None
    """auto: train.accumulate is doubled until a pass fits into the memory; null: it stays as it is."""
    accumulate: PositiveInt
    """Forward passes per update in each process (gradient accumulation)."""
    precision: Precision
    """Data type of the forward pass: fp32, bf16 or fp16 (with a scaled loss)."""
    compile: bool
    """Whether to use torch.compile."""
    cuda_graph: bool = False
    """Whether forward and backward pass are one CUDA graph, so that the GPU need not wait for the processor."""
    channels_last: bool
    """Whether to keep the weights in torch.channels_last."""
    grad_checkpointing: bool = False
    """Whether to compute activations again in the backward pass: less memory, longer steps."""
    freeze: list[str] = Field(default_factory=list)
    """Parts of the model that are not trained, such as [patch_embed,blocks.0]."""
    freeze_batchnorm: bool = False
    """Whether the model's BatchNorms keep the statistics that they start with, for batches of few images."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None
    """Decay per update of the moving average of the weights (EMA); null: no EMA."""
    log_every: PositiveInt
    """Updates between two lines of metrics.jsonl."""
    save_every: PositiveInt | None = None
    """Updates between two checkpoints within an epoch; null: only one after each epoch."""
    keep_last: PositiveInt = 2
    """Number of the newest checkpoints that are kept: last.pt and the ones before it."""
    keep_best: PositiveInt = 1
    """Number of the best checkpoints that are kept: best.pt and the next best ones."""
    best_by: Literal["better", "raw"] = "better"
    """Weights that decide which checkpoints are the best: the better of raw and EMA, or raw."""

    patience: PositiveInt | None = None
    """Validations after the warm-up without a better train.select metric that end the run; null: no early end."""
    max_time: Hours | None = None
    """Hours of training, such as 1.5 or "1:30:00", after which the run ends; null: no limit."""

    select: str | None = None
    """Metric of the validation that decides which checkpoints are the best, such as macro_f1; null: the task's."""

    @property
    def trainer(self) -> dict[str, Any]:
        """Arguments of `Trainer`."""
        return self.model_dump(include=OF_TRAINER)

    @model_validator(mode="before")
    @classmethod
    def one_length(cls, values: Any) -> Any:
        """A number of updates takes the place of the recipe's epochs."""
        if isinstance(values, dict) and values.get("updates") is not None:
            usable = isinstance(values["updates"], int) and values["updates"] >= 1  # otherwise an error follows
            if usable and values.get("epochs") not in (None, "auto"):
                warnings.warn(
                    f"train.updates={values['updates']}: sets the length of the run; "
                    f"train.epochs={values['epochs']} has no effect",
                    Notice,
                    stacklevel=2,
                )
            return values | {"epochs": None}
        return values

    @model_validator(mode="after")
    def has_a_length(self) -> "LoopConfig":
        if self.epochs is None and self.updates is None:
            raise ValueError("epochs: must be given, or train.updates")
        return self

    @model_validator(mode="after")
    def captures_one_pass(self) -> "LoopConfig":
        for option, is_set in (
            (f"accumulate={self.accumulate}", self.accumulate > 1),
            ("batch_size=auto", self.batch_size == "auto"),
            ("grad_checkpointing=true", self.grad_checkpointing),
        ):
            if self.cuda_graph and is_set:
                raise ValueError(f"cuda_graph=true: cannot be combined with train.{option}")
        return self

    def scaled(self, num_images: int, world_size: int) -> "ScaledLoopConfig":
        """The same with numbers instead of "auto".

        The global batch is the largest power of two that is at most 512 and half of the images, or just below it:
        each process gets an even number of images in each pass, because mixup and CutMix mix pairs of images. The
        epochs are 100, or more until there are 1,000 updates.
        """
        step = 2 * world_size * self.accumulate
        largest = max(1, min(MOST_IMAGES_PER_UPDATE, num_images // 2))
        power_of_two = 1 << (largest.bit_length() - 1)
        given, epochs = self.global_batch_size, self.epochs
        batch = given if isinstance(given, int) else max(step, power_of_two // step * step)
        if epochs == "auto":
            updates_per_epoch = max(1, num_images // batch)
            epochs = max(FEWEST_EPOCHS, -(-FEWEST_UPDATES // updates_per_epoch))
        return ScaledLoopConfig.model_validate(dict(self) | {"epochs": epochs, "global_batch_size": batch})

    def images_per_pass(self, world_size: int) -> int:
        """Images of one forward pass in one process; not for a global batch of "auto".

        Raises:
            InputError: the global batch cannot be divided.
        """
        assert isinstance(self.global_batch_size, int)
        parts = world_size * self.accumulate
        if self.global_batch_size % parts:
            raise InputError(
                f"train.global_batch_size={self.global_batch_size}: must be a multiple of {parts} "
                f"({world_size} processes × train.accumulate={self.accumulate})"
            )
        return self.global_batch_size // parts


class ScaledLoopConfig(LoopConfig):
    """A loop whose length and batch are numbers."""

    epochs: PositiveInt | None = None
    global_batch_size: PositiveInt
