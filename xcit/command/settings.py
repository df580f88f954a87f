"""Every setting of the configuration and the types that it takes, read without importing torch."""

import ast
import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from ..config.accepted_values import section_in
from ..config.composition import SET_BY_THE_PROGRAM

# Group → the room whose functions and classes own its options, as keyword-only arguments.
ROOMS = {
    "model": "xcit/models",
    "data": "data/datasets",
    "task": "xcit/tasks",
    "augment": "data/views",
    "evaluate": "xcit/evaluation",
}


@dataclass(frozen=True)
class Settings:
    """What may be typed for a command: settings (SETTING=VALUE) and groups (GROUP=CHOICE)."""

    conf: Path
    """The folder of the configuration."""
    root: str
    """The file in it that the command composes, "train" or "eval"."""
    types: dict[str, frozenset[str]]
    """Key → the names of the types that it takes: "str", "int", "float", "bool", "list", "dict", "None", "Literal"."""
    groups: tuple[str, ...]
    comments: dict[str, str]
    """Key → its comment in conf/. A key that is in no file there has none."""


@functools.cache  # a command asks twice, and to read the source takes a quarter of a second
def read_settings(schema: type[BaseModel], root: str, repository: Path) -> Settings:
    """The settings of the command that composes conf/ROOT.yaml.

    The fixed sections are the schema's. The options of a model, a data set, a task or an augmentation are read from
    the source, because importing it would load torch.
    """
    conf = repository / "conf"
    defaults = re.findall(r"^  - (\w+):", (conf / f"{root}.yaml").read_text(), re.MULTILINE)
    folders = {path.name for path in conf.iterdir() if path.is_dir()}
    groups = [*defaults, *(name for name in schema.model_fields if name in folders)]
    types = dict(fixed_settings(schema))
    for group, room in ROOMS.items():
        if group in schema.model_fields:
            types |= {f"{group}.{option}": kinds for option, kinds in options_in(repository / room)}
    comments = {key: comment for key, comment in comments_in(conf, root).items() if key in types}
    return Settings(conf, root, types, tuple(dict.fromkeys(groups)), comments)


def fixed_settings(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, frozenset[str]]]:
    """(key with dots, its types) of a schema's fields."""
    for name, field in schema.model_fields.items():
        section = section_in(field)
        if section:
            yield from fixed_settings(section, f"{prefix}{name}.")
        else:
            yield prefix + name, frozenset(type_names(field.annotation))


def type_names(annotation: Any) -> Iterator[str]:
    """The names of the types in an annotation. Those of the items of a list do not count."""
    if annotation is NoneType:
        yield "None"
    elif inspect.isclass(annotation) and not get_args(annotation):
        yield annotation.__name__
    else:
        origin = getattr(annotation, "__origin__", None)
        if origin in (list, dict, tuple):
            yield "list" if origin is tuple else origin.__name__
        elif get_origin(annotation) is Literal:
            yield "Literal"
        else:
            for part in get_args(annotation):
                yield from type_names(part)


def options_in(room: Path) -> Iterator[tuple[str, frozenset[str]]]:
    """(name, types) of every keyword-only argument of the functions and classes that the table of a room names."""
    tables = [n.value for n in ast.parse((room / "__init__.py").read_text()).body if isinstance(n, ast.AnnAssign)]
    named = {name for table in tables if table for name in all_names(table)}
    nodes = [node for path in sorted(room.rglob("*.py")) for node in ast.parse(path.read_text()).body]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    entries = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name in named]
    waiting = [name for name in classes if name in named]
    for name in waiting:  # a class has the arguments of its base class, too
        body = classes[name].body
        entries += [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
        waiting += [base for part in classes[name].bases for base in all_names(part) if base in classes]
    for entry in entries:
        for argument in entry.args.kwonlyargs:
            if argument.annotation and argument.arg not in SET_BY_THE_PROGRAM:
                yield argument.arg, frozenset(names_in(argument.annotation))


def all_names(expression: ast.expr) -> Iterator[str]:
    """Every name in an expression of the source, also behind a dot."""
    for node in ast.walk(expression):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def names_in(annotation: ast.expr) -> Iterator[str]:
    """The names in an annotation of the source, those of items too."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Constant) and node.value is None:
            yield "None"


def comments_in(conf: Path, root: str, choices: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """Key with dots → the comment behind it in conf/ROOT.yaml and in the files of the groups.

    choices: group → what is chosen; where files explain a key differently, the chosen one counts.
    """
    chosen = [conf / group / f"{name}.yaml" for group, name in (choices or {}).items()]
    chosen = [path for path in chosen if path.is_file()]
    found: dict[str, str] = {}
    for path in [conf / f"{root}.yaml", *chosen, *sorted(conf.glob("*/*/*.yaml")), *sorted(conf.glob("*/*.yaml"))]:
        text = path.read_text().partition("\nhydra:")[0]
        in_root = path.parent == conf or text.startswith("# @package _global_")
        sections = [] if in_root else [path.relative_to(conf).parts[0]]
        own = len(sections)
        for line in text.splitlines():
            match = re.match(r"( *)(\w+):(.*?)(?: # (.*))?$", line)
            if match and match[2] != "defaults":
                del sections[own + len(match[1]) // 2 :]
                if match[4]:
                    found.setdefault(".".join([*sections, match[2]]), match[4])
                if not match[3].strip():
                    sections.append(match[2])
    return found
