"""Checks a composed configuration against the schema, and writes it as a YAML file that Hydra can load again."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Annotated, Any, Protocol, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, Field, ValidationError, create_model

from ..credentials import without_credentials
from ..errors import InputError, Notice, choose, did_you_mean
from . import TrainConfig
from .accepted_values import accepted, find_field, section_in, shown
from .option_docs import described_options
from .sections import OPEN_SECTIONS, Section, with_kind_of_task

C = TypeVar("C", bound=Section)

# group → its table: name → what builds it.
Tables = Mapping[str, Mapping[str, Callable[..., Any]]]

# The Hydra settings of conf/train.yaml and conf/eval.yaml, for a configuration that stands by itself.
RUN_AGAIN = """\
defaults:
- _self_
- override hydra/job_logging: disabled
- override hydra/hydra_logging: disabled
hydra:
  run: {dir: .}
  output_subdir: null
"""


def make_tables(
    models: Mapping[str, Callable[..., Any]],
    datasets: Mapping[str, Callable[..., Any]],
    tasks: Mapping[str, Any],
    training_views: Mapping[str, Callable[..., Any]],
    evaluations: Mapping[str, Callable[..., Any]] | None = None,
) -> Tables:
    """The tables of the open groups.

    They are passed in, so that this file can be imported without torch, and because xcit must not import data.

    Args:
        training_views: view → what makes it for training; a task names its view.
        evaluations: of eval.py.
    """
    augment = {name: training_views[task.view] for name, task in tasks.items()}
    evaluate = {"evaluate": evaluations} if evaluations else {}
    return {"model": models, "data": datasets, "task": tasks, "augment": augment, **evaluate}


def read_config(schema: type[C], raw: DictConfig | Mapping[str, Any], tables: Tables) -> C:
    """The composed configuration as typed objects.

    Raises:
        InputError: a key is unknown or missing, or a value has the wrong type or range. One line that names the key.
    """
    plain: Any = raw
    if OmegaConf.is_config(raw):
        try:
            OmegaConf.to_container(
                raw, resolve=False, throw_on_missing=True
            )  # names the key itself, not one that uses it
            plain = OmegaConf.to_container(raw, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            # Without a model, the run's name cannot be resolved. That key would mislead.
            missing = "model" if "model" not in raw and error.full_key == "name" else error.full_key
            if missing == "model" or isinstance(error, MissingMandatoryValue | InterpolationToMissingValueError):
                raise InputError(f"{missing}: must be given") from None
            reason = str(error).splitlines()[0]
            raise InputError(f"{missing}: {reason} (${{…}} refers to a setting; \\${{…}} is the text itself)") from None
    plain = with_kind_of_task(without_old_keys(plain) if schema is TrainConfig else plain, tables.get("task", {}))
    complete = schema_for(schema, plain, tables)
    try:
        return complete.model_validate(plain)
    except ValidationError as invalid:
        remedy, problem = "", invalid.errors()[0]
        if problem["loc"][:1] == ("augment",):  # which may be that of the data set's own task
            task: Any = tables["task"][plain["task"]["name"]]
            require_declared_kind(plain["task"]["name"], task.target_kinds, plain["data"]["name"], tables)
            remedy = f"; augment={task.augment} has them" if task.augment and problem["type"] == "missing" else ""
        raise InputError(describe(invalid, complete, plain) + remedy) from None


def require_target(task: str, kinds: Sequence[str], data: str, kind: str) -> None:
    """Refuse a data set whose targets are of a kind that the task does not learn from.

    task, data: their names. kinds: those that the task learns from.
    """
    if kind not in kinds:
        accepted = " or ".join(kinds)
        raise InputError(f"task={task}: learns from targets of kind {accepted}; those of data={data} are {kind}")


def require_declared_kind(task: str, kinds: Sequence[str], data: str, tables: Tables) -> None:
    """`require_target` without reading the data: the return type of the data set's `train` may declare the kind."""
    source: Any = tables.get("data", {}).get(data)
    examples: Any = inspect.get_annotations(source.train, eval_str=True).get("return") if source else None
    kind = getattr(examples, "target_kind", None)
    if kind and Protocol not in examples.__bases__:  # Examples itself says nothing of the kind
        require_target(task, kinds, data, kind)


FROM_SIGNATURES = {"extra": "forbid", "use_attribute_docstrings": False}
"""For sections that are made of signatures: no other options, and no source code in which pydantic finds docstrings."""
REMOVED = object()
SET_BY_THE_PROGRAM = ("num_classes", "in_chans", "pretrained", "global_pool")
"""Arguments of models that are no settings."""
Choices = Mapping[str, str | None]
"""Group → the file of conf/ that was chosen for it."""


def continued(
    before: Mapping[str, Any], choices_before: Choices, composed: DictConfig, choices: Choices, typed: Sequence[str]
) -> tuple[DictConfig, Choices]:
    """The configuration of a resumed run: its own, changed by what was typed.

    Args:
        before, choices_before: the configuration of the run, and its choices; older runs did not save the latter.
        composed, choices: the configuration that the command line alone composes, and its choices.
        typed: the keys on the command line: groups ("model") and settings ("train.epochs").

    Raises:
        InputError: another recipe was typed.
    """
    config, now = OmegaConf.create({**before}), {**choices_before}
    for key in dict.fromkeys(["resume", "run_dir", *typed]):
        if key == "recipe":
            if choices_before.get(key, choices.get(key)) != choices.get(key):
                raise InputError(f"recipe={choices.get(key)}: the run to continue has recipe={choices_before[key]}")
            continue
        if key == "task" and not is_same_choice(key, before, choices_before, composed, choices):
            own = before.get("task", {}).get("name")
            raise InputError(
                f"task={choices.get(key)}: the run to continue has task={own}; pretrained=RUN starts a new run"
            )
        if key in choices:
            now[key] = choices[key]
            if is_same_choice(key, before, choices_before, composed, choices):
                continue  # what was set in this group when the run was started stays
        value = OmegaConf.select(composed, key, default=REMOVED)
        if value is REMOVED:
            raise InputError(f"~{key}: cannot be removed from the configuration of the run to continue")
        OmegaConf.update(config, key, value, merge=False, force_add=True)
    # A length that was typed takes the place of the run's, which may be given in the other unit.
    if "train.epochs" in typed and "train.updates" not in typed:
        config.train.updates = None
    return config, now


def without_parts(raw: DictConfig) -> DictConfig:
    """The configuration of an evaluation without the sections that `with_known` completes."""
    return OmegaConf.masked_copy(raw, [str(key) for key in raw if not is_part(raw, str(key))])


def with_known(raw: DictConfig, known: Mapping[str, Section | None]) -> DictConfig:
    """Complete the configuration of an evaluation with what is known of its checkpoint.

    known: group → the checkpoint's section. It counts unless another one is chosen, as with data=NAME. Keys that are
    typed without a choice, as data.root=/other, change it.
    """
    own = {
        group: section.model_dump(serialize_as_any=True)
        for group, section in known.items()
        if section and (group not in raw or is_part(raw, group))
    }
    whole = OmegaConf.merge(own, raw)
    assert isinstance(whole, DictConfig)
    return whole


def is_part(raw: DictConfig, group: str) -> bool:
    """Whether a section has only some keys, because nothing is chosen for its group."""
    return group in OPEN_SECTIONS and group in raw and "name" not in list(raw[group])


def is_same_choice(
    group: str, before: Mapping[str, Any], choices_before: Choices, composed: DictConfig, choices: Choices
) -> bool:
    """Whether the file of conf/ that was typed for a group is the one that the run was started with."""
    if group in choices_before:
        return choices_before[group] == choices[group]
    own, section = before.get(group), composed.get(group)
    return isinstance(own, Mapping) and "name" in own and section is not None and section.get("name") == own["name"]


def without_old_keys(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Drop `patch_size` at the root, which older runs saved beside model.patch_size; the latter counts."""
    model = plain.get("model")
    unused, used = plain.get("patch_size"), model.get("patch_size") if isinstance(model, Mapping) else None
    if unused and used and unused != used:
        warnings.warn(f"patch_size={unused}: has no effect; model.patch_size={used} counts", Notice, 3)
    return {key: value for key, value in plain.items() if key != "patch_size"}


def schema_for(schema: type[C], plain: Mapping[str, Any], tables: Tables) -> type[C]:
    """The schema, completed with the options of the chosen entries of the open groups."""
    groups: dict[str, Any] = {}
    for group, table in tables.items():
        chosen = plain.get(OPEN_SECTIONS[group].chosen_by or group)
        if group in schema.model_fields and isinstance(plain.get(group), Mapping) and isinstance(chosen, Mapping):
            groups[group] = (section_for(group, chosen, table), ...)
    return create_model(schema.__name__, __base__=schema, __cls_kwargs__=FROM_SIGNATURES, **groups)


def section_for(group: str, chosen: Mapping[str, Any], table: Mapping[str, Callable[..., Any]]) -> type[Any]:
    """The schema of an open group, with the options of its chosen entry."""
    base = OPEN_SECTIONS[group]
    name = base.entry_of(chosen)
    if not isinstance(name, str):
        return base
    options = options_of(choose(table, name, f"{base.chosen_by or group}.name"))
    section = create_model(base.__name__, __base__=base, __cls_kwargs__=FROM_SIGNATURES, **options)
    section.option_names = frozenset(options)
    return section


def options_of(entry: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only parameters of a table's entry as fields, except those that the program sets.

    Its docstring describes them, as `described_options` says.
    """
    parameters, described = inspect.signature(entry, eval_str=True).parameters.values(), described_options(entry)
    return {
        p.name: (
            Annotated[p.annotation, Field(description=described.get(p.name))],
            ... if p.default is inspect.Parameter.empty else p.default,
        )
        for p in parameters
        if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name not in SET_BY_THE_PROGRAM
    }


def describe(invalid: ValidationError, schema: type[Section], plain: Mapping[str, Any]) -> str:
    """The first problem in one line: its key, its value, and what would be accepted."""
    problem = invalid.errors()[0]
    path, field = find_field(schema, problem["loc"])
    key, value = ".".join(path), reduce(lambda section, name: section.get(name, {}), path, plain)
    match problem["type"]:
        case "extra_forbidden":
            key = ".".join(map(str, problem["loc"]))
            return f"{key}: unknown key{accepted_options(key, schema, plain) or did_you_mean(key, known_keys(schema))}"
        case "missing":
            return f"{key}: must be given{accepted_options(key, schema, plain)}"
        case "value_error":
            message = problem["msg"].removeprefix("Value error, ")
            if isinstance(problem["input"], Mapping | BaseModel):  # of a section, and the message begins with the key
                return f"{key}{'.' if key else ''}{message}"
            return f"{key}={shown(value)}: {message}"
    assert field is not None  # only the two cases above are about something else than a value
    wanted = accepted(field)
    if problem["type"] == "finite_number":
        wanted = wanted.replace("a number", "a finite number")
    return f"{key}={shown(value)}: must be {wanted}"


def accepted_options(key: str, schema: type[Section], plain: Mapping[str, Any]) -> str:
    """For a key of a group whose options another group chooses, as task= does for augment: list these options."""
    group = key.partition(".")[0]
    base = OPEN_SECTIONS.get(group)
    if base is None or base.chosen_by is None:
        return ""
    options = ", ".join(sorted(getattr(schema.model_fields[group].annotation, "option_names", ())))
    return f"; {base.chosen_by}={plain[base.chosen_by]['name']} takes the {group} options {options}"


def known_keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of a schema, with dots."""
    for name, field in schema.model_fields.items():
        yield prefix + name
        section = section_in(field)
        if section:
            yield from known_keys(section, f"{prefix}{name}.")


def every_key(schema: type[Section], tables: Tables) -> list[str]:
    """All keys of a schema, for every choice in its open groups."""
    options = [
        f"{group}.{option}" for group, table in tables.items() for e in table.values() for option in options_of(e)
    ]
    return list(dict.fromkeys([*known_keys(schema), *options]))


def to_yaml(config: Section) -> str:
    """The whole configuration as a file that runs it again: train.py --config-path=FOLDER --config-name=config.

    It does not hold run_dir, so that the next run gets its own folder, and no passwords or tokens.
    """
    plain = (
        config.model_dump(serialize_as_any=True)
        | {"run_dir": None}
        | ({"resume": "none"} if isinstance(config, TrainConfig) else {})
    )
    return RUN_AGAIN + OmegaConf.to_yaml(OmegaConf.create(without_credentials(plain)))
