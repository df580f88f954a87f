"""From the arguments that a user types to those that Hydra reads. Mistakes are found here, before torch is loaded."""

import argparse
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException

from ..credentials import without_credentials
from ..errors import InputError, did_you_mean
from .hints import find_candidates, suggest_key
from .settings import Settings

OVERRIDE = re.compile(r"(?P<prefix>\+\+|\+|~)?(?P<key>[^=]+)=(?P<value>.*)", re.DOTALL)
NOT_A_NAME = re.compile(r"null|true|false|[\d.]+|[{].*", re.IGNORECASE)

OF_A_RUN = ("model", "data", "task")
"""The groups that an evaluation takes from the run if nothing is chosen for them."""


def parse(arguments: Sequence[str], settings: Settings) -> argparse.Namespace:
    """Hydra's options, and `overrides`.

    Raises:
        InputError: an option is unknown.
    """
    parser = get_args_parser()

    def error(message: str) -> NoReturn:
        ambiguous = re.match(r"ambiguous option: (\S+) could match", message)
        if ambiguous:
            raise InputError(f"{ambiguous[1]}: unknown option{instead_of_option(ambiguous[1], '', [], settings)}")
        raise InputError(message.removeprefix("argument "))

    parser.error = error  # type: ignore[method-assign]
    args, rest = parser.parse_known_args(list(arguments))
    for argument in rest:
        if argument.startswith("-"):
            known = [flag for action in parser._actions for flag in action.option_strings]
            after = "".join(arguments[list(arguments).index(argument) + 1 :][:1])
            value = "" if after.startswith("-") or "=" in after else after
            raise InputError(f"{argument}: unknown option{instead_of_option(argument, value, known, settings)}")
    args.overrides = [a for a in arguments if a in {*args.overrides, *rest}]  # in their order
    return args


def instead_of_option(argument: str, after: str, options: Sequence[str], settings: Settings) -> str:
    """What to type instead of --hlep, --epochs 3 or --lr=1e-3.

    after: the argument behind it, if it may be its value.
    """
    name, _, value = argument.lstrip("-").partition("=")
    value = value or after
    key = name.replace("-", "_")
    known = [*settings.types, *settings.groups]
    found = [key] if key in known else find_candidates(key, known)
    near = did_you_mean(argument, [option for option in options if option.startswith("--")])
    if near and not found:
        return near
    folder = "folder data.root=" if found[:1] == ["data"] and "/" in value else ""
    example = f"; here {found[0]}={folder}{value or '…'}" if found else ""
    return f"; settings are given as SETTING=VALUE{example} (--help lists them)"


def prepare(arguments: Sequence[str], settings: Settings) -> list[str]:
    """The arguments as Hydra reads them: text is quoted where its grammar would read something else.

    Raises:
        InputError: an argument is no option and no SETTING=VALUE, or its key is unknown.
    """
    args = parse(arguments, settings)
    if is_multirun(args):
        refuse_secrets(args.overrides)
    ours = set(args.overrides)
    options = [argument for argument in arguments if argument not in ours]
    return [*options, *(prepared(a, settings, args, sections_of_run(settings, ours)) for a in args.overrides)]


def sections_of_run(settings: Settings, arguments: Collection[str]) -> set[str]:
    """The sections that come from a run: all if one is resumed; in an evaluation those for which nothing is chosen.

    The command line alone may lack their keys.
    """
    if settings.root == "eval":
        return {*OF_A_RUN} - {argument.partition("=")[0].lstrip("+") for argument in arguments}
    resumed = any(re.match(r"\+*resume=(?!none$)", argument) for argument in arguments)
    return {key.partition(".")[0] for key in settings.types} if resumed else set()


def prepared(argument: str, settings: Settings, args: argparse.Namespace, of_run: Collection[str]) -> str:
    """One argument as Hydra reads it. of_run: as `sections_of_run` returns it."""
    match = OVERRIDE.fullmatch(argument)
    if not match:
        if argument.startswith("~") and not argument.startswith("~/"):
            return argument
        raise InputError(f"{argument}: {no_setting(argument, settings)}")
    prefix, key, value = match["prefix"] or "", match["key"], match["value"]
    if prefix == "~" or key.startswith("hydra"):
        return argument
    if key.replace("/", ".") in settings.types and "/" in key:
        raise InputError(f"{key}: unknown key; did you mean {key.replace('/', '.')}?")
    if key in settings.groups or "@" in key or "/" in key:
        require_choice(key, value, args, settings)
        return argument
    if key not in settings.types:
        within = any(key.startswith(f"{known}.") and "dict" in kinds for known, kinds in settings.types.items())
        if not within and not (args.config_dir and "." not in key):
            raise InputError(f"{key}: unknown key{instead_of_key(key, settings)}")
        return argument
    if not value:
        raise InputError(f"{key}=: must have a value")
    typed = quoted_if_needed(value, settings.types[key], f"{key}=", is_multirun(args))
    may_be_missing = key not in settings.comments or key.partition(".")[0] in of_run  # Hydra must be told to add it
    return f"{'++' if may_be_missing else prefix}{key}={typed}"


def instead_of_key(key: str, settings: Settings) -> str:
    """What to type instead of an unknown key, or what its section has."""
    is_section = any(known.startswith(f"{key}.") for known in settings.types)
    section = key if is_section else key.rpartition(".")[0]
    beside = sorted(k.removeprefix(f"{section}.") for k in settings.comments if k.rpartition(".")[0] == section)
    listed = f"; {section} has the settings {', '.join(beside)}" if section and beside else " (--help lists the keys)"
    return suggest_key(key, [*settings.types, *settings.groups]) or listed


def no_setting(argument: str, settings: Settings) -> str:
    """What to type instead of an argument without an equals sign."""
    if argument in settings.types or argument in settings.groups or argument == "=":
        return "must be given as SETTING=VALUE, without spaces"
    start, _, value = argument.partition(":")
    if start in settings.types or start in settings.groups:
        return f"must be given as SETTING=VALUE: {start}={value.strip()}"
    key = "checkpoint" if "checkpoint" in settings.types else "data=folder data.root"
    looks_like_a_path = "/" in argument or "." in argument or Path(argument).exists()
    return f"must be given as SETTING=VALUE{f': {key}={argument}' if looks_like_a_path else ''} (--help lists the keys)"


def require_choice(group: str, value: str, args: argparse.Namespace, settings: Settings) -> None:
    """Raise an InputError if what is chosen for a group cannot be a name."""
    if NOT_A_NAME.fullmatch(value):
        raise InputError(f"{group}={value}: must be a name, which --help lists")
    if group == "data" and ("/" in value or value.startswith("~")):
        raise InputError(
            f"data={value}: must be a name, which --help lists; images in class folders are "
            f"data=folder data.root={value}"
        )
    if group == "model" and "/" in value:
        key = "checkpoint" if "checkpoint" in settings.types else "pretrained"
        raise InputError(f"model={value}: must be a name, which --help lists; trained weights are {key}={value}")
    if "," in value and not is_multirun(args):
        raise InputError(f"{group}={value}: must be one name; -m runs a job for each of several")


def quoted_if_needed(value: str, kinds: frozenset[str], start: str, multirun: bool) -> str:
    """The value, in quotes if it is text that Hydra would not read as it stands.

    Raises:
        InputError: Hydra cannot read it, and it is no text.
    """
    override, problem = read(f"{start}{value}")
    if problem and {"str", "list"} <= kinds and (items := re.fullmatch(r"\[([^\[\]'\"]*)\]", value)):
        return f"[{','.join(quoted(item.strip()) for item in items[1].split(','))}]"
    if override and (override.is_sweep_override() and multirun):
        return value
    if "str" not in kinds or ("list" in kinds and value.startswith("[")) or "${" in value:
        if problem:
            form = "; a list is given as 'SETTING=[A,B]', with text in it in quotes" if "list" in kinds else ""
            raise InputError(f"{start}{value}: cannot be read ({problem}){form}")
        if override and override.is_sweep_override():
            wanted = f"a list, as '{start}[{value}]'" if "list" in kinds else "one value"
            raise InputError(f"{start}{value}: must be {wanted}; -m runs a job for each of several")
        return value
    if override and not override.is_sweep_override():
        read_as = override.value()
        its_kind = "None" if read_as is None else type(read_as).__name__
        is_quoted = value[0] in "'\"" and isinstance(read_as, str)
        if is_quoted or read_as == value or (its_kind in kinds and its_kind in ("None", "bool", "int")):
            return value
    return quoted(value)


def read(argument: str) -> tuple[Override | None, str]:
    """The override as Hydra parses it, or why it cannot."""
    try:
        return OverridesParser.create().parse_override(argument), ""
    except OverrideParseException as error:
        return None, str(error).splitlines()[0]
    except HydraException as error:
        return None, str(error)


def quoted(text: str) -> str:
    """The text as a string of Hydra's grammar. In it a backslash counts only before a quote and at the end."""
    doubled = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + (r"\'" if m[2] else ""), text)
    return f"'{doubled}'"


def is_multirun(args: argparse.Namespace) -> bool:
    """Whether Hydra runs several jobs, by -m or by hydra.mode=."""
    by_mode = re.compile(r"\+*hydra\.mode=(?!RUN$|null$)")
    return args.multirun or any(map(by_mode.match, args.overrides))


def refuse_secrets(arguments: Sequence[str]) -> None:
    """Raise an InputError for a password or a token, which Hydra's multirun would write to its multirun.yaml."""
    for argument in arguments:
        shown = without_credentials(argument)
        if shown != argument:
            raise InputError(
                f"{shown}: multirun would save its secret in multirun.yaml; use ~/.netrc, or start single runs"
            )


def choices_and_typed_keys() -> tuple[dict[str, str | None], list[str]]:
    """What Hydra has read: group → choice, and the keys that were typed ("train.epochs" of "train.epochs=3")."""
    hydra = HydraConfig.get()
    choices = {group: name for group, name in hydra.runtime.choices.items() if not group.startswith("hydra/")}
    overrides = OverridesParser.create().parse_overrides(list(hydra.overrides.task))
    return choices, [str(override.key_or_group) for override in overrides]
