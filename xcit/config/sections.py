"""The open groups of the configuration (model, task, data and so on), and what all of its sections are made of.

An open group has a table of entries, which own their options: the keyword-only arguments of an entry are what its file
in conf/ may set. The section "Args:" of the entry's docstring describes them, as the docstrings of fields do here.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..number_types import Finite, PositiveFloat, PositiveInt, Share


class Section(BaseModel):
    """Some keys of the configuration."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class OpenSection(Section):
    """A group with a table of entries: an entry's keyword-only arguments are further fields of it, the options.

    This class accepts any options. `section_for` makes the one for an entry, which accepts that entry's.
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

    name: str
    """Model: an entry of MODELS in xcit/models."""
    library: Literal["xcit", "timm"] = "xcit"
    """Library that builds the model."""

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

    name: str
    """What is learnt: an entry of TASKS in xcit/tasks."""


class EvaluateConfig(NamedSection):
    """conf/evaluate: the options are those of the way to evaluate."""

    name: str
    """How a checkpoint is evaluated: an entry of EVALUATIONS in xcit/evaluation."""


class DataConfig(NamedSection):
    """conf/data: the options are the data set's; these keys are the same for all."""

    name: str
    """Data set: an entry of DATASETS in data/datasets."""
    image_size: PositiveInt | Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] = 224
    """Height and width of the images in pixels, in training and validation; [height, width] if they differ."""
    channels: PositiveInt = 3
    """Channels of an image: 1 for gray, 3 for RGB, 4 for RGBA, or the bands or pages of a TIFF."""
    bit_depth: Annotated[int, Field(ge=1, le=16)] = 8
    """Bits of a pixel's channel; the integers from 0 to the largest one are scaled to [0, 1]."""
    value_range: Annotated[list[Finite], Field(min_length=2, max_length=2)] | None = None
    """Values that are scaled to 0 and 1, for floats and for integers of another range; null: those of bit_depth."""
    mean: Annotated[list[Finite], Field(min_length=1)] | None = None
    """Mean of each channel, scaled; null: the model's (scripts/measure_data.py measures yours)."""
    std: Annotated[list[PositiveFloat], Field(min_length=1)] | None = None
    """Standard deviation of each channel, scaled; null: the model's."""
    resize: Literal["crop", "letterbox", "squash"] | None = None
    """How images get their size: crop (null) cuts off what is too long, letterbox pads, squash stretches."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that load images, for each training process; null: one for each of its cores, at most 8."""
    max_broken: Share = 0.001
    """Largest share of broken training images, which are replaced by others; above it the run stops."""
    max_pixels: PositiveInt = 178_956_970
    """Largest image in pixels (width × height); a larger one is refused as broken."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """How training images are drawn: uniform (each once an epoch), or balanced (each class equally often)."""
    decode: Literal["cpu", "gpu"] = "cpu"
    """Where training JPEGs are decoded: cpu, or gpu without RandAugment, color jitter and 3-Augment."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        H, W = self.image_size if isinstance(self.image_size, list) else (self.image_size, self.image_size)
        return H, W

    @property
    def resolution(self) -> int:
        """The shorter side in pixels. Resolutions are shorter sides; the longer ones change in proportion."""
        return min(self.size)

    @property
    def input_values(self) -> dict[str, Any]:
        """The values of `Preprocessing` that are given here."""
        keys = ("bit_depth", "value_range", "mean", "std", "resize")
        given = {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
        return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}


def with_kind_of_task(plain: Mapping[str, Any], tasks: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration with the kind of target that the task learns from in place of data.kind=auto.

    One class for each image is not asked for: the default task learns from it, so nobody may have chosen it.
    """
    data, task = (plain.get(group) for group in ("data", "task"))
    if not isinstance(data, Mapping) or not isinstance(task, Mapping) or data.get("kind") != "auto":
        return plain
    kinds = getattr(tasks.get(str(task.get("name"))), "target_kinds", ())
    return {**plain, "data": {**data, "kind": kinds[0]}} if kinds in (("classes",), ("values",)) else plain


class AugmentConfig(OpenSection):
    """conf/augment: the options are those of the task's view (data/views); these keys are the same for all."""

    chosen_by = "task"
    repeats: PositiveInt = 1
    """Copies of each image in an epoch, each with its own augmentation (repeated augmentation)."""
    image_sizes: Annotated[list[PositiveInt], Field(min_length=1)] | None = None
    """Training sizes in pixels, each for an equal part of the run; null: data.image_size."""


OPEN_SECTIONS: dict[str, type[OpenSection]] = {
    "model": ModelConfig,
    "task": TaskConfig,
    "data": DataConfig,
    "augment": AugmentConfig,
    "evaluate": EvaluateConfig,
}
