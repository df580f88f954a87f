"""The files of conf/: which key of the schema each of their keys is, and the comment behind it.

`scripts/write_reference.py` writes the comments.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from xcit.config import EvalConfig, TrainConfig
from xcit.config.accepted_values import accepted, choices, find_field
from xcit.config.composition import Tables, section_for
from xcit.config.sections import OPEN_SECTIONS, OpenSection
from xcit.errors import InputError

NOT_OURS = ("defaults", "hydra")  # Hydra's own keys
CHOSEN_BY = {group: section.chosen_by for group, section in OPEN_SECTIONS.items() if section.chosen_by}
Key = tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """A key that a file of conf/ sets."""

    key: Key
    """The whole key, ("data", "image_size") for image_size in conf/data/digits.yaml."""
    value: str
    """As the file has it."""
    line: int
    column: int
    """Where the value ends, counted from 0: the comment follows."""


@dataclass(frozen=True)
class ConfFile:
    """A file of conf/."""

    conf: Path
    path: Path
    tables: Tables

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def group(self) -> str | None:
        """The group whose keys the file sets; None if it sets any keys, as recipes do."""
        parts = self.path.relative_to(self.conf).parts
        return parts[0] if len(parts) > 1 and "@package _global_" not in self.text else None

    @cached_property
    def schema(self) -> type[BaseModel]:
        return EvalConfig if self.path == self.conf / "eval.yaml" else TrainConfig

    @cached_property
    def defaults(self) -> list[Any]:
        return (yaml.safe_load(self.text) or {}).get("defaults", [])

    @cached_property
    def bases(self) -> list["ConfFile"]:
        """The files of the same group that this one is based on."""
        others = [name for name in self.defaults if isinstance(name, str) and name[0] not in "_/"]
        names = [name.partition("@")[0] for name in others]
        return [self.choice(self.group, name) for name in names if self.group]

    def choice(self, group: str, name: str) -> "ConfFile":
        """The file that `group=name` chooses."""
        return ConfFile(self.conf, self.conf / group / f"{name}.yaml", self.tables)

    @cached_property
    def settings(self) -> list[Setting]:
        prefix = (self.group,) if self.group else ()
        return list(self.settings_in(yaml.compose(self.text), prefix))

    def settings_in(self, node: yaml.Node | None, prefix: Key) -> Iterator[Setting]:
        for name, value in node.value if node else ():
            key = (*prefix, name.value)
            if name.value in NOT_OURS:
                continue
            is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
            if is_block and key[0] in self.schema.model_fields and len(key) == 1:  # a section
                yield from self.settings_in(value, key)
            elif is_block:
                yield Setting(key, "", name.end_mark.line, name.end_mark.column + 1)
            else:
                source = self.text[value.start_mark.index : value.end_mark.index]
                yield Setting(key, source, value.end_mark.line, value.end_mark.column)

    @cached_property
    def values(self) -> dict[str, str]:
        """Every key that is set here or in the files that this one is based on."""
        inherited = {key: value for base in self.bases for key, value in base.values.items()}
        return inherited | {".".join(setting.key): setting.value for setting in self.settings}

    @cached_property
    def entries(self) -> dict[str, str]:
        """Group → the entry of its table that the file is for."""
        if self.group and self.group in self.tables:
            name = self.values.get(f"{self.group}.name")
            chosen = {"name": name, "library": self.values.get("model.library")}
            entry = OPEN_SECTIONS[self.group].entry_of(chosen) if name else self.first_that_fits(self.group)
            return {self.group: entry} if entry else {}
        named = {group.strip("/"): name for d in self.defaults if isinstance(d, dict) for group, name in d.items()}
        chosen_files = [self.choice(group, name) for group, name in named.items() if group in self.tables and name]
        found = {group: entry for file in chosen_files for group, entry in file.entries.items()}
        return found | {group: found[by] for group, by in CHOSEN_BY.items() if by in found}

    def first_that_fits(self, group: str) -> str | None:
        """The first entry that takes all keys of this file and needs no others."""
        keys = {key.partition(".")[2] for key in self.values}
        for entry in self.tables[group]:
            fields = section_of(group, entry, self.tables).model_fields
            needed = {name for name, field in fields.items() if field.is_required() and name != "name"}
            if needed <= keys <= fields.keys():
                return entry
        return None

    def field(self, key: Key) -> FieldInfo | None:
        """The key in the schema. Where several entries of a group have it, that of the file's entry."""
        group = key[0]
        if len(key) == 1 or group not in self.tables:
            found, field = find_field(self.schema, key)
            return field if len(found) == len(key) else None
        own = self.entries.get(group)
        entries = [own] if own else self.tables[group]
        of_entries = (section_of(group, entry, self.tables).model_fields.get(key[1]) for entry in entries)
        return next(filter(None, of_entries), None)

    def with_comments(self) -> str:
        """The text of the file with the schema's description behind each key.

        Raises:
            InputError: a key is not in the schema, or has no description there.
        """
        lines = self.text.split("\n")
        for setting in self.settings:
            key, field = ".".join(setting.key), self.field(setting.key)
            if field is None:
                raise InputError(f"{self.path}: {key} is not in the schema")
            lines[setting.line] = f"{lines[setting.line][: setting.column]} # {comment(key, field, setting.value)}"
        return "\n".join(lines)

    @property
    def headline(self) -> str:
        """The first line of the comment at the head of the file."""
        heads = re.findall(r"^# (?!@package)(.+)$", self.text, re.MULTILINE)
        return heads[0] if heads else ""


def conf_files(conf: Path, tables: Tables) -> list[ConfFile]:
    return [ConfFile(conf, path, tables) for path in sorted(conf.rglob("*.yaml"))]


def section_of(group: str, entry: str, tables: Tables) -> type[OpenSection]:
    """An open group with the options of an entry of its table."""
    chosen = {"name": entry, "library": "timm" if entry == "timm" else "xcit"}
    section: type[OpenSection] = section_for(group, chosen, tables[group])
    return section


def comment(key: str, field: FieldInfo, value: str = "") -> str:
    """The description, followed by the names that the key accepts unless it contains them. ??? stands for no value."""
    text = described(key, field)
    names = choices(field)
    if not set(names) <= set(re.findall(r"\w+", text)):
        text += f": {accepted(field)}"
    return f"must be given: {text}" if value == "???" else text


def described(key: str, field: FieldInfo) -> str:
    """The description as a comment: without its full stop, and in lower case where it begins with a plain word.

    Raises:
        InputError: there is none.
    """
    if not field.description:
        raise InputError(f"{key}: has no description; docs/extending.md says where to write it")
    text = " ".join(field.description.split()).removesuffix(".")
    is_plain = re.match(r"[A-Z][a-z]*\b", text)
    return text[0].lower() + text[1:] if is_plain else text
