"""The typed schema of conf/; xcit/composition.py checks a composed configuration against it.

Sections that are the same for every run are classes here. The open groups (model, data, task, augment) have a table
each, whose entries own their options: the keyword-only arguments of the entry are what its file in conf/ may set.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .errors import InputError, Notice

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Auto = Literal["auto"]
"""A number that follows from the number of training images; see `LoopConfig.scaled`."""
Precision = Literal["fp32", "bf16", "fp16"]


MOST_IMAGES_PER_UPDATE, FEWEST_EPOCHS, FEWEST_UPDATES = 512, 100, 1_000
"""What "auto" means in train.global_batch_size and train.epochs."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class OpenSection(Section):
    """A group with a table of entries: an entry's keyword-only arguments are further fields of it, the options.

    This class accepts any options. `composition.section_for` makes the one for an entry, which accepts that entry's.
    """

    model_config = ConfigDict(extra="allow")

    option_names: ClassVar[frozenset[str]] = frozenset()
    chosen_by: ClassVar[str | None] = None
    """The group whose name chooses the entry, if it is not this one."""

    @classmethod
    def entry_of(cls, chosen: Mapping[str, Any]) -> str | None:
        """The table's entry that a composed group asks for."""
        return chosen.get("name")

    @property
    def options(self) -> dict[str, Any]:
        return self.model_dump(include=set(self.option_names))


class NamedSection(OpenSection):
    name: str

    @property
    def entry(self) -> str:
        return str(self.entry_of(dict(self)))


class ModelConfig(NamedSection):
    """conf/model: the options are the model's. All timm models share one entry."""

    library: Literal["xcit", "timm"] = "xcit"

    @property
    def side_of_patch(self) -> int:
        """The patch size in pixels; 1 if the model has no such option."""
        return self.options.get("patch_size", 1)

    @classmethod
    def entry_of(cls, chosen: Mapping[str, Any]) -> str | None:
        return "timm" if chosen.get("library") == "timm" else chosen.get("name")

    @model_validator(mode="before")
    @classmethod
    def heads_of_the_variant(cls, chosen: Any) -> Any:
        """`heads: null`, as conf/model/ has it, means the variant's number."""
        if isinstance(chosen, Mapping) and chosen.get("heads", 1) is None:
            return {key: value for key, value in chosen.items() if key != "heads"}
        return chosen


class TaskConfig(NamedSection):
    """conf/task: the options are the task's."""


class DataConfig(NamedSection):
    """conf/data: the options are the data set's; these keys are the same for all."""

    image_size: Positive = 224
    workers: Annotated[int, Field(ge=0)] | None = None
    """Worker processes for each training process; null for the cores at hand."""
    max_broken: Share = 0.001
    """The share of the training images that may be broken, and are replaced by others, before the run stops."""
    max_pixels: Positive = 178_956_970
    """Images with more pixels are broken, because a small file may need gigabytes of memory."""
    decode: Literal["cpu", "gpu"] = "cpu"
    """Where JPEGs are decoded in training."""


class AugmentConfig(OpenSection):
    """conf/augment: the options are those of the task's view (data/views); these keys are the same for all."""

    chosen_by = "task"
    repeats: Positive = 1
    """Copies of each image in an epoch, each augmented anew (repeated augmentation)."""
    image_sizes: Annotated[list[Positive], Field(min_length=1)] | None = None
    """Training resolutions, one after the other in equal parts of the run; null for data.image_size throughout."""


OPEN_SECTIONS: dict[str, type[OpenSection]] = {
    "model": ModelConfig,
    "task": TaskConfig,
    "data": DataConfig,
    "augment": AugmentConfig,
}


class OptimConfig(Section):
    """conf/optim: the optimizer and the learning rate schedule."""

    name: str
    lr: PositiveFloat
    weight_decay: NonNegative
    options: dict[str, Any]
    clip_norm: PositiveFloat | None
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    warmup_epochs: NonNegative
    warmup_lr: NonNegative
    cooldown_epochs: NonNegative
    min_lr: NonNegative
    lr_every: Literal["update", "epoch"] = "update"
    """When the learning rate changes: at every update, or once per epoch and one epoch late, as in the paper's runs."""
    decay_temperature: bool = False
    """Whether the temperatures of cross-covariance attention have weight decay, as in the authors' runs."""

    @property
    def optimizer(self) -> dict[str, Any]:
        """The arguments of `make_optimizer`, without the learning rate."""
        return self.model_dump(include={"name", "weight_decay", "options", "layer_decay", "decay_temperature"})

    @property
    def schedule(self) -> dict[str, Any]:
        """The arguments of `make_schedule`."""
        return self.model_dump(include={"warmup_epochs", "warmup_lr", "cooldown_epochs", "min_lr", "lr_every"})


class LoopConfig(Section):
    """train.*: the loop."""

    epochs: Positive | Auto | None = None
    updates: Positive | None = None
    """The length of the run; takes the place of epochs."""
    global_batch_size: Positive | Auto
    accumulate: Positive
    precision: Precision
    compile: bool
    channels_last: bool
    grad_checkpointing: bool = False
    freeze: list[str] = []
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None
    log_every: Positive
    save_every: Positive | None = None
    keep_last: Positive = 2
    keep_best: Positive = 1
    best_by: Literal["better", "raw"] = "better"
    """Weights whose headline metric decides which checkpoints are the best: the better of raw and EMA, or raw."""

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

    def batch_size(self, world_size: int) -> int:
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

    epochs: Positive | None = None
    global_batch_size: Positive


class LoggerConfig(Section):
    """conf/logger: where metrics go besides metrics.jsonl."""

    name: Literal["none", "csv", "tensorboard", "wandb"]
    project: str = "xcit"
    entity: str | None = None
    mode: Literal["online", "offline", "disabled"] = "online"


CropRatio = Annotated[float, Field(gt=0, le=1)]


class TrainConfig(Section):
    """conf/train.yaml."""

    run_dir: str | None
    crop_ratio: CropRatio
    name: str
    data: DataConfig  # before `model`, which refers to data.image_size: only the first error is reported
    model: ModelConfig
    task: TaskConfig
    augment: AugmentConfig
    optim: OptimConfig
    train: LoopConfig
    logger: LoggerConfig
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    resume: str
    pretrained: str | bool | None
    deterministic: bool
    resolutions: Annotated[list[Positive], Field(min_length=1)] | None = None

    def scaled(self, num_images: int, world_size: int) -> "ScaledTrainConfig":
        """The same with numbers instead of "auto"; see `LoopConfig.scaled`."""
        train = self.train.scaled(num_images, world_size)
        return cast(ScaledTrainConfig, self.model_copy(update={"train": train}))  # it keeps the options of open groups

    @model_validator(mode="after")
    def stays_below_runs(self) -> "TrainConfig":
        if Path(self.name).is_absolute() or ".." in Path(self.name).parts:
            raise ValueError(f"name={self.name}: must be a folder below runs/; run_dir= takes any")
        return self


class ScaledTrainConfig(TrainConfig):
    """A run whose length and batch are numbers."""

    train: ScaledLoopConfig


class EvalConfig(Section):
    """conf/eval.yaml. model, data, task, resolutions and crop_ratio are the run's own if they are not given."""

    run_dir: str | None
    checkpoint: str
    crop_ratio: CropRatio | None
    weights: Literal["raw", "ema", "both"]
    resolutions: Annotated[list[Positive], Field(min_length=1)] | None
    batch_size: Positive
    precision: Precision
    model: ModelConfig | None = None
    data: DataConfig | None = None
    task: TaskConfig | None = None


class ResolvedEvalConfig(EvalConfig):
    """An evaluation's configuration with all that came from the run it evaluates."""

    model: ModelConfig
    data: DataConfig
    task: TaskConfig
    resolutions: list[Positive]
    crop_ratio: float
