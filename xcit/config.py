"""The typed schema of conf/, and how a composed configuration is checked against it.

Sections that are the same for every run are classes here. The open groups (model, data, task) have a table each, whose
entries own their options: the keyword arguments of the class are what its file in conf/ may set.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from .errors import InputError, choose, did_you_mean

C = TypeVar("C", bound="Section")

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Range = Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)]
RAND_AUGMENT = r"rand(-(m\d+|n\d+|p[\d.]+|mstd[\d.]+|mmax\d+|inc[01]|tweights|t3a))*"
Precision = Literal["fp32", "bf16", "fp16"]
# What conf/train.yaml and conf/eval.yaml tell Hydra, for a configuration that stands by itself.
RUN_AGAIN = """\
defaults:
- _self_
- override hydra/job_logging: disabled
- override hydra/hydra_logging: disabled
hydra:
  run: {dir: .}
  output_subdir: null
"""

Tables = Mapping[str, Mapping[str, Callable[..., Any]]]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class OpenSection(Section):
    """A group with a table: `name` is the entry; its keyword arguments are further fields, the options."""

    name: str
    option_names: ClassVar[frozenset[str]] = frozenset()

    @property
    def options(self) -> dict[str, Any]:
        return self.model_dump(include=set(self.option_names))


class ModelConfig(OpenSection):
    """conf/model: the options are the model's."""


class TaskConfig(OpenSection):
    """conf/task: the options are the task's."""


class DataConfig(OpenSection):
    """conf/data: the options are the data set's; these are the same for all."""

    image_size: Positive = 224
    workers: Annotated[int, Field(ge=0)] = 8


OPEN_SECTIONS: dict[str, type[OpenSection]] = {"model": ModelConfig, "task": TaskConfig, "data": DataConfig}


class AugmentConfig(Section):
    """conf/augment; see `train_transform` and `Mixing` in data/."""

    scale: Range
    ratio: Range
    hflip: Share
    color_jitter: NonNegative
    rand_augment: str | None
    erase_prob: Share
    mixup: NonNegative
    cutmix: NonNegative
    switch_prob: Share
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    repeats: Positive

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
        """The arguments of `train_transform`."""
        return self.model_dump(include={"scale", "ratio", "hflip", "color_jitter", "rand_augment", "erase_prob"})

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
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None
    log_every: Positive

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
    model: ModelConfig
    data: DataConfig
    task: TaskConfig
    augment: AugmentConfig
    optim: OptimConfig
    train: LoopConfig
    logger: LoggerConfig
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    resume: str
    pretrained: str | None
    deterministic: bool
    resolutions: Annotated[list[Positive], Field(min_length=1)]
    patch_size: Positive | None = None
    """What the recipe prefers; conf/model/ takes it for model.patch_size."""


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


def read_config(schema: type[C], raw: DictConfig | Mapping[str, Any], tables: Tables) -> C:
    """The composed configuration as typed objects.

    Raises:
        InputError: a key is unknown or missing, a value of the wrong type or out of range. One line, with the key.
    """
    try:
        plain: Any = (
            OmegaConf.to_container(raw, resolve=True, throw_on_missing=True) if OmegaConf.is_config(raw) else raw
        )
    except OmegaConfBaseException as error:
        raise InputError(f"{error.full_key}: must be given") from None
    complete = schema_for(schema, plain, tables)
    try:
        return complete.model_validate(plain)
    except ValidationError as invalid:
        raise InputError(describe(invalid, complete)) from None


def schema_for(schema: type[C], plain: Mapping[str, Any], tables: Tables) -> type[C]:
    """The schema with the open groups' options filled in, as the chosen entries have them."""
    groups: dict[str, Any] = {}
    for group, table in tables.items():
        chosen = plain.get(group)
        if group in schema.model_fields and isinstance(chosen, Mapping) and isinstance(chosen.get("name"), str):
            entry = choose(table, chosen["name"], f"{group}.name")
            base, options = OPEN_SECTIONS[group], options_of(entry)
            section = create_model(base.__name__, __base__=base, **options)
            section.option_names = frozenset(options)
            groups[group] = (section, ...)
    return create_model(schema.__name__, __base__=schema, **groups)


def options_of(entry: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only parameters of a table's entry, as fields, but for those that come from the data."""
    parameters = inspect.signature(entry, eval_str=True).parameters.values()
    return {
        p.name: (p.annotation, ... if p.default is inspect.Parameter.empty else p.default)
        for p in parameters
        if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name not in ("num_classes", "in_chans")
    }


def describe(invalid: ValidationError, schema: type[Section]) -> str:
    """The first problem in one line: its key, its value, what would be accepted."""
    problem = invalid.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key{did_you_mean(key, known_keys(schema))}"
        case "missing":
            return f"{key}: must be given"
        case "value_error":
            return f"{key}{'.' if key else ''}{problem['msg'].removeprefix('Value error, ')}"
        case _:
            return f"{key}={problem['input']}: {re.sub('^(Input|List|Value) should', 'must', problem['msg'])}"


def known_keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of a schema, with dots."""
    for name, field in schema.model_fields.items():
        yield prefix + name
        for kind in [field.annotation, *get_args(field.annotation)]:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from known_keys(kind, f"{prefix}{name}.")


def every_key(schema: type[Section], tables: Tables) -> list[str]:
    """The keys of a schema whatever is chosen in its open groups."""
    options = [
        f"{group}.{option}" for group, table in tables.items() for e in table.values() for option in options_of(e)
    ]
    return list(dict.fromkeys([*known_keys(schema), *options]))


def to_yaml(config: Section) -> str:
    """The whole configuration as a file that runs it again: train.py --config-path=FOLDER --config-name=config.

    Where it ran is not part of it, so that the next run gets a folder of its own.
    """
    plain = config.model_dump() | {"run_dir": None} | ({"resume": "none"} if isinstance(config, TrainConfig) else {})
    return RUN_AGAIN + OmegaConf.to_yaml(OmegaConf.create(plain))


def require_patches(model: ModelConfig, sizes: Mapping[str, int]) -> None:
    """Refuse image sizes (key → pixels) under one patch of the model."""
    patch_size = model.options.get("patch_size", 1)
    for key, size in sizes.items():
        if size < patch_size:
            raise InputError(f"{key}={size}: must hold one patch (model.patch_size={patch_size})")
