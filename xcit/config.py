"""The typed schema of conf/; xcit/composition.py checks a composed configuration against it.

Sections that are the same for every run are classes here. The open groups (model, data, task) have a table each, whose
entries own their options: the keyword arguments of the class are what its file in conf/ may set.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .errors import InputError

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Range = Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)]
RAND_AUGMENT = r"rand(-(m\d+|n\d+|p[\d.]+|mstd[\d.]+|mmax\d+|inc[01]|tweights|t3a))*"
Precision = Literal["fp32", "bf16", "fp16"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class OpenSection(Section):
    """A group with a table: `name` is the entry; its keyword arguments are further fields, the options."""

    name: str
    option_names: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def entry_of(cls, chosen: Mapping[str, Any]) -> str | None:
        """The table's entry that a composed group asks for."""
        return chosen.get("name")

    @property
    def entry(self) -> str:
        return str(self.entry_of(dict(self)))

    @property
    def options(self) -> dict[str, Any]:
        return self.model_dump(include=set(self.option_names))


class ModelConfig(OpenSection):
    """conf/model: the options are the model's. Those of timm have one entry together."""

    library: Literal["xcit", "timm"] = "xcit"

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


class TaskConfig(OpenSection):
    """conf/task: the options are the task's."""


class DataConfig(OpenSection):
    """conf/data: the options are the data set's; these are the same for all."""

    image_size: Positive = 224
    workers: Annotated[int, Field(ge=0)] = 8
    max_broken: Share = 0.001
    """Of the training images: so many may be broken, and are replaced by others, before the run stops."""
    decode: Literal["cpu", "gpu"] = "cpu"
    """Where JPEGs are decoded in training."""


OPEN_SECTIONS: dict[str, type[OpenSection]] = {"model": ModelConfig, "task": TaskConfig, "data": DataConfig}


class AugmentConfig(Section):
    """conf/augment; see `TrainTransform` and `Mixing` in data/."""

    scale: Range
    ratio: Range
    hflip: Share
    color_jitter: NonNegative
    rand_augment: str | None
    three_augment: bool = False
    erase_prob: Share
    mixup: NonNegative
    cutmix: NonNegative
    switch_prob: Share
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    repeats: Positive
    image_sizes: Annotated[list[Positive], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def ranges_rise(self) -> "AugmentConfig":
        if self.scale[0] > self.scale[1] or self.scale[1] > 1:
            raise ValueError(f"scale={self.scale}: must rise, and end at 1 at most")
        if self.ratio[0] > self.ratio[1]:
            raise ValueError(f"ratio={self.ratio}: must rise")
        if self.rand_augment is not None and not re.fullmatch(RAND_AUGMENT, self.rand_augment):
            raise ValueError(f"rand_augment={self.rand_augment}: must be a policy of timm's, as rand-m9-mstd0.5-inc1")
        return self

    @property
    def transform(self) -> dict[str, Any]:
        """The arguments of `TrainTransform`."""
        of_mixing = {"mixup", "cutmix", "switch_prob", "label_smoothing"}
        return self.model_dump(exclude={*of_mixing, "repeats", "image_sizes"})

    @property
    def mixing(self) -> dict[str, Any]:
        """The arguments of `Mixing`."""
        return self.model_dump(include={"mixup", "cutmix", "switch_prob", "label_smoothing"})


class OptimConfig(Section):
    """conf/optim: the optimiser and the learning rate's schedule."""

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

    @property
    def schedule(self) -> dict[str, float]:
        """The arguments of `make_schedule`."""
        return self.model_dump(include={"warmup_epochs", "warmup_lr", "cooldown_epochs", "min_lr"})


class LoopConfig(Section):
    """train.*: the loop."""

    epochs: Positive
    global_batch_size: Positive
    accumulate: Positive
    precision: Precision
    compile: bool
    channels_last: bool
    grad_checkpointing: bool = False
    freeze: list[str] = []
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None
    log_every: Positive
    save_every: Positive | None = None

    def batch_size(self, world_size: int) -> int:
        """Images of one forward pass in one process."""
        parts = world_size * self.accumulate
        if self.global_batch_size % parts:
            raise InputError(
                f"train.global_batch_size={self.global_batch_size}: must be a multiple of {parts} "
                f"({world_size} processes × train.accumulate={self.accumulate})"
            )
        return self.global_batch_size // parts


class LoggerConfig(Section):
    """conf/logger: where metrics go besides metrics.jsonl."""

    name: Literal["none", "csv", "tensorboard", "wandb"]
    project: str = "xcit"
    entity: str | None = None
    mode: Literal["online", "offline", "disabled"] = "online"


class Evaluated(Section):
    """What train.py and eval.py have in common."""

    run_dir: str | None
    crop_ratio: Annotated[float, Field(gt=0, le=1)]


class TrainConfig(Evaluated):
    """conf/train.yaml."""

    name: str
    data: DataConfig  # before the model, which takes image_size from it: the first problem is told
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
    resolutions: Annotated[list[Positive], Field(min_length=1)]

    @model_validator(mode="after")
    def stays_below_runs(self) -> "TrainConfig":
        if Path(self.name).is_absolute() or ".." in Path(self.name).parts:
            raise ValueError(f"name={self.name}: must be a folder below runs/; run_dir= takes any")
        return self


class EvalConfig(Evaluated):
    """conf/eval.yaml. model, data and resolutions are the run's own where they are not given."""

    checkpoint: str
    weights: Literal["raw", "ema", "both"]
    resolutions: Annotated[list[Positive], Field(min_length=1)] | None
    batch_size: Positive
    precision: Precision
    model: ModelConfig | None = None
    data: DataConfig | None = None


class ResolvedEvalConfig(EvalConfig):
    """An evaluation's configuration with all that came from the run it evaluates."""

    model: ModelConfig
    data: DataConfig
    resolutions: list[Positive]
