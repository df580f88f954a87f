"""The typed schema of conf/; xcit/config/composition.py checks a composed configuration against it.

The sections: sections.py has the open groups (model, data, task, augment, evaluate), training.py has optim and train.

The docstring below a key is its description: one short line with the unit and the meaning of null. A key is explained
there only. scripts/write_reference.py copies the line into conf/ and docs/configuration.md.
"""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, model_validator

from ..errors import Notice
from ..number_types import PositiveInt
from .sections import (
    AugmentConfig,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    Section,
    TaskConfig,
)
from .training import LoopConfig, OptimConfig, Precision, ScaledLoopConfig

LONGEST_NAME = 255
"""The bytes that a file's name may have in nearly every file system."""


class LoggerConfig(Section):
    """conf/logger: where metrics go besides metrics.jsonl."""

    name: Literal["none", "csv", "tensorboard", "wandb", "mlflow"]
    """Where metrics go, besides metrics.jsonl."""
    project: str | None = None
    """Project on wandb, or experiment on MLflow; null: WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME, otherwise xcit."""
    entity: str | None = None
    """User or team on wandb; null: WANDB_ENTITY, otherwise wandb's default."""
    mode: Literal["online", "offline", "disabled"] | None = None
    """How wandb sends the metrics: online, offline or disabled; null: WANDB_MODE, otherwise online."""


CropRatio = Annotated[float, Field(gt=0, le=1)]


class TrainConfig(Section):
    """conf/train.yaml."""

    run_dir: str | None
    """Folder of the run; null: runs/NAME/TIMESTAMP."""
    crop_ratio: CropRatio
    """In evaluation, image size / short side to which the image is resized before the center crop."""
    name: str
    """Name of the run's folder in runs/."""
    data: DataConfig  # before `model`, which refers to data.image_size: only the first error is reported
    model: ModelConfig
    task: TaskConfig
    augment: AugmentConfig
    optim: OptimConfig
    train: LoopConfig
    logger: LoggerConfig
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Seed of all random numbers."""
    resume: str
    """Run to continue: none, auto (the one in run_dir, or the latest of this name), its folder or a checkpoint."""
    pretrained: str | bool | None
    """Initial weights: a published name, a file or a run folder; true: the model's; null: none."""
    init_from: str | None = None
    """Run whose weights, EMA and head a new run starts from, with a schedule of its own; null: none."""
    deterministic: bool
    """Whether to refuse operations whose results vary from run to run."""
    resolutions: Annotated[list[PositiveInt], Field(min_length=1)] | None = None
    """Sizes in pixels of the final evaluation; null: seven around data.image_size."""

    @property
    def training_sizes(self) -> list[int]:
        """The resolutions in training, one after the other."""
        return self.augment.image_sizes or [self.data.resolution]

    @property
    def sizes(self) -> dict[str, Any]:
        """Key of the configuration → sizes of images, in pixels, that the model must take."""
        chosen = {"augment.image_sizes": self.augment.image_sizes, "resolutions": self.resolutions}
        return {"data.image_size": [self.data.size], **{key: sizes or [] for key, sizes in chosen.items()}}

    @property
    def model_options(self) -> dict[str, Any]:
        """The options of the model, with the channels of its images unless they are 3: not every model has this one."""
        return self.model.options | ({} if self.data.channels == 3 else {"in_chans": self.data.channels})

    def scaled(self, num_images: int, world_size: int) -> "ScaledTrainConfig":
        """The same with numbers instead of "auto"; see `LoopConfig.scaled`."""
        train = self.train.scaled(num_images, world_size)
        return cast(ScaledTrainConfig, self.model_copy(update={"train": train}))  # it keeps the options of open groups

    @property
    def length(self) -> dict[str, Any]:
        """The length of the run, and of its warm-up, whose validations do not count for train.patience."""
        length = self.train.model_dump(include={"epochs", "updates", "patience"})
        return length | self.optim.model_dump(include={"warmup_epochs", "warmup_updates"})

    @property
    def initial_weights(self) -> str | bool | None:
        """What the new model loads."""
        return self.init_from or self.pretrained

    def with_accumulate(self, accumulate: int) -> Self:
        """The same with another train.accumulate, which a resume keeps."""
        train = self.train.model_copy(update={"accumulate": accumulate, "batch_size": None})
        return self.model_copy(update={"train": train})

    def trials(self, world_size: int) -> Iterator[tuple[int, Self]]:
        """For train.batch_size=auto: train.accumulate, doubled each time, and the same with it at the largest size."""
        accumulate = self.train.accumulate
        alone = self.data.model_copy(update={"workers": 0})  # workers would load further batches
        augment = self.augment.model_copy(update={"image_sizes": [max(self.training_sizes)]})
        while self.train.global_batch_size % (world_size * accumulate) == 0:
            tried = self.with_accumulate(accumulate).model_copy(update={"augment": augment, "data": alone})
            yield accumulate, tried
            accumulate *= 2

    @property
    def order(self) -> dict[str, Any]:
        """What the order of an epoch's images depends on: a resume within an epoch needs the same."""
        return {
            "data": self.data.name,
            "augment.repeats": self.augment.repeats,
            "train.global_batch_size": self.train.global_batch_size,
            "seed": self.seed,
            "data.sampling": self.data.sampling,
        }

    @model_validator(mode="before")
    @classmethod
    def one_start(cls, values: Any) -> Any:
        """A run to start from takes the place of the recipe's weights."""
        if isinstance(values, dict) and values.get("init_from") and values.get("pretrained"):
            both = f"init_from={values['init_from']}: takes the place of pretrained={values['pretrained']}"
            warnings.warn(both, Notice, stacklevel=2)
            return values | {"pretrained": None}
        return values

    @model_validator(mode="after")
    def has_a_name_for_a_folder(self) -> "TrainConfig":
        if Path(self.name).is_absolute() or ".." in Path(self.name).parts:
            raise ValueError(f"name={self.name}: must be a folder below runs/; run_dir= takes any")
        if "\0" in self.name or any(len(os.fsencode(part)) > LONGEST_NAME for part in Path(self.name).parts):
            raise ValueError(f"name={self.name}: must be the name of a folder, with {LONGEST_NAME} bytes at most")
        return self


class ScaledTrainConfig(TrainConfig):
    """A run whose length and batch are numbers."""

    train: ScaledLoopConfig


class EvalConfig(Section):
    """conf/eval.yaml. model, data, task, resolutions and crop_ratio are the run's own if they are not given."""

    run_dir: str | None
    """Folder of the results; null: runs/eval/TIMESTAMP."""
    checkpoint: str
    """A run folder, a checkpoint in one, a file of weights or a published name."""
    crop_ratio: CropRatio | None
    """Image size / short side to which the image is resized before the center crop; null: the run's, or 1."""
    weights: Literal["raw", "ema", "both"]
    """Weights that are evaluated: raw, ema (their moving average) or both."""
    resolutions: Annotated[list[PositiveInt], Field(min_length=1)] | None
    """Image sizes in pixels; null: the run's list, or up to seven around the training size."""
    batch_size: PositiveInt
    """Images per batch in each process."""
    precision: Precision
    """Data type of the forward pass."""
    model: ModelConfig | None = None
    data: DataConfig | None = None
    task: TaskConfig | None = None
    evaluate: EvaluateConfig = EvaluateConfig(name="task")


class ResolvedEvalConfig(EvalConfig):
    """An evaluation's configuration with all that came from the run it evaluates."""

    model: ModelConfig
    data: DataConfig
    task: TaskConfig
    resolutions: list[PositiveInt]
    crop_ratio: float
