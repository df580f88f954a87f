"""Composes the configuration of each job and checks it, before torch is loaded."""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ..config import EvalConfig
from ..config.accepted_values import shown
from ..config.composition import read_config, without_parts
from ..config.sections import Section
from ..errors import InputError, unknown
from .arguments import instead_of_key
from .hints import suggest_model
from .settings import Settings


def compose_jobs(settings: Settings, overrides: Sequence[str]) -> Iterator[DictConfig]:
    """The configuration of each job of a multirun, as Hydra's default sweeper makes them.

    Raises:
        InputError: a job does not compose, or two jobs have the same folder.
    """
    try:
        (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(list(overrides)), None)
    except HydraException as error:
        raise InputError(explain(error, settings)) from None
    folders: dict[str, int] = {}
    for number, job in enumerate(jobs):
        raw = composed(settings, job)
        with open_dict(raw):
            raw.hydra.job.num, raw.hydra.job.id = number, str(number)
        HydraConfig.instance().set_config(raw)  # so that ${hydra:job.num} resolves
        folder = raw.get("run_dir")
        if folder in folders:
            raise InputError(
                f"run_dir={folder}: jobs {folders[folder] + 1} and {number + 1} would share this folder; leave run_dir "
                "out, or give each job its own: 'run_dir=runs/mine/${hydra:job.num}'"
            )
        if folder:
            folders[str(folder)] = number
        yield raw


def composed(settings: Settings, overrides: Sequence[str]) -> DictConfig:
    """The configuration, with Hydra's own at `hydra`.

    Raises:
        InputError: it does not compose.
    """
    with initialize_config_dir(version_base="1.3", config_dir=str(settings.conf)):
        try:
            return compose(settings.root, list(overrides), return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(explain(error, settings)) from None


def with_home(raw: DictConfig) -> DictConfig:
    """The configuration with the home folder in place of the ~ at the start of a path, wherever it was set."""

    def expanded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: expanded(item) for key, item in value.items()}
        if isinstance(value, list):
            return list(map(expanded, value))
        return str(Path(value).expanduser()) if isinstance(value, str) and re.match("~(/|$)", value) else value

    return OmegaConf.create(expanded(OmegaConf.to_container(raw)))


def check(raw: DictConfig, schema: type[Section]) -> None:
    """Raise an InputError for a wrong value in the fixed sections, and for a missing one.

    The options of models, data sets, tasks and augmentations are checked when torch is loaded.
    """
    require_paths(raw)
    if raw.get("resume", "none") != "none":
        return  # the configuration is that of the run to resume
    HydraConfig.instance().set_config(raw)  # so that ${hydra:…} resolves
    raw = without_hydra(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are shown when the command reads its configuration
        config = read_config(schema, without_parts(raw) if schema is EvalConfig else raw, {})
    if getattr(config, "name", "") == "null":
        raise InputError("name=null: must be the name of a folder; without name= it is MODEL_DATA")
    resolutions = getattr(config, "resolutions", None) or []
    twice = next((size for size in resolutions if resolutions.count(size) > 1), None)
    if twice:  # not in the schema, which older runs must pass, too
        raise InputError(f"resolutions={shown(resolutions)}: must name each resolution once; {twice} is there twice")


def require_paths(raw: DictConfig) -> None:
    """Raise an InputError for a checkpoint or weights in a folder that do not exist. Names are looked up later."""
    for key in ("checkpoint", "pretrained", "init_from", "resume"):
        value = str(OmegaConf.select(raw, key))
        is_path = "/" in value and "://" not in value and not value.startswith(("timm/", "hf-hub:"))
        if is_path and not os.path.exists(os.path.expanduser(value)):  # noqa: PTH110, PTH111 - they raise for long names
            raise InputError(f"{key}={value}: no such file or run folder")


def without_hydra(raw: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(raw, [str(key) for key in raw if key != "hydra"])


def explain(error: Exception, settings: Settings) -> str:
    """Why Hydra cannot compose, in one line and in the words of the other errors."""
    message = str(error).strip()
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        if group == "model":
            return f"model={name}: unknown{suggest_model(name, error.options)} (one of {', '.join(error.options)})"
        return unknown(name, group, error.options)
    named = re.search(r"Could not override '([^']+)'", message)
    if isinstance(error, ConfigCompositionException) and named:
        key = str(getattr(error.__cause__, "full_key", None) or "")
        key = key if key.startswith(named[1]) else named[1]
        group, _, rest = key.partition(".")
        if group in settings.groups and not rest:
            return f"{group}=: there is nothing to choose from; --config-path reads a whole configuration"
        if group in settings.groups and key in settings.types:
            return f"{key}: not a key of what is chosen for {group}; choose with {group}="
        if any(key.startswith(f"{known}.") for known in settings.types):
            return f"{key}: unknown key; +{key}=… adds it"
        return f"{key}: unknown key{instead_of_key(key, settings)}"
    return " ".join(message.split())
