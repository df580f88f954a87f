"""The files of conf/: which key of the schema each of their keys is, and the comment behind it.

`scripts/write_reference.py` writes the comments.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from xcit.accepted_values import accepted, choices
from xcit.composition import Tables, section_for
from xcit.config import EvalConfig, TrainConfig
from xcit.sections import OPEN_SECTIONS

NOT_OURS = ("defaults", "hydra")  # Hydra's own keys
Key = tuple[str, ...]


class UndescribedError(Exception):
    """A key of conf/ is not in the schema, or has no description there."""


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
        names = [name.partition("@")[0] for name in self.defaults if isinstance(name, str) and name != "_self_"]
        return [self.other(f"{self.group}/{name}") for name in names]

    def other(self, name: str) -> "ConfFile":
        return ConfFile(self.conf, self.conf / f"{name}.yaml", self.tables)

    @cached_property
    def settings(self) -> list[Setting]:
        prefix = (self.group,) if self.group else ()
        return list(self.settings_in(yaml.compose(self.text), prefix))

    def settings_in(self, node: yaml.MappingNode, prefix: Key) -> Iterator[Setting]:
        for name, value in node.value:
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
        if self.group in self.tables:
            name = self.values.get(f"{self.group}.name")
            chosen = {"name": name, "library": self.values.get("model.library")}
            entry = OPEN_SECTIONS[self.group].entry_of(chosen) if name else self.first_that_fits(self.group)
            return {self.group: entry} if entry else {}
        named = {group.strip("/"): choice for d in self.defaults if isinstance(d, dict) for group, choice in d.items()}
        found = {
            group: self.other(f"{group}/{choice}").entries.get(group)
            for group, choice in named.items()
            if group in self.tables and choice
        }
        if "task" in found:
            found["augment"] = found["task"]
        return {group: entry for group, entry in found.items() if entry}

    def first_that_fits(self, group: str) -> str | None:
        """The first entry that takes all keys of this file and needs no others."""
        keys = {key.partition(".")[2] for key in self.values}
        for entry in self.tables[group]:
            fields = fields_of(group, entry, self.tables)
            needed = {name for name, field in fields.items() if field.is_required() and name != "name"}
            if needed <= keys <= fields.keys():
                return entry
        return None

    def field(self, key: Key) -> FieldInfo | None:
        """The key in the schema. Where several entries of a group have it, that of the file's entry."""
        fields: Mapping[str, FieldInfo] = self.schema.model_fields
        if len(key) == 1:
            return fields.get(key[0])
        group = key[0]
        if group not in self.tables:
            section = fields[group].annotation if group in fields else None
            return section.model_fields.get(key[1]) if section and issubclass(section, BaseModel) else None
        own = self.entries.get(group)
        found = (fields_of(group, entry, self.tables).get(key[1]) for entry in ([own] if own else self.tables[group]))
        return next(filter(None, found), None)

    def with_comments(self) -> str:
        """The text of the file with the schema's description behind each key.

        Raises:
            UndescribedError: a key is not in the schema, or has no description there.
        """
        lines = self.text.split("\n")
        for setting in self.settings:
            field = self.field(setting.key)
            if field is None or not field.description:
                what = "is not in the schema" if field is None else "has no description in the schema"
                raise UndescribedError(f"{self.path}: {'.'.join(setting.key)} {what}")
            lines[setting.line] = f"{lines[setting.line][: setting.column]} # {comment(field, setting.value)}"
        return "\n".join(lines)

    @property
    def headline(self) -> str:
        """The first line of the comment at the head of the file."""
        heads = re.findall(r"^# (?!@package)(.+)$", self.text, re.MULTILINE)
        return heads[0] if heads else ""


def conf_files(conf: Path, tables: Tables) -> list[ConfFile]:
    return [ConfFile(conf, path, tables) for path in sorted(conf.rglob("*.yaml"))]


def fields_of(group: str, entry: str, tables: Tables) -> Mapping[str, FieldInfo]:
    """The keys of an open group with the options of an entry of its table."""
    chosen = {"name": entry, "library": "timm" if entry == "timm" else "xcit"}
    return section_for(group, chosen, tables[group]).model_fields


def comment(field: FieldInfo, value: str = "") -> str:
    """The description, followed by the names that the key accepts unless it contains them. ??? stands for no value."""
    text = described(field)
    names = choices(field)
    if not set(names) <= set(re.findall(r"\w+", text)):
        text += f": {accepted(field)}"
    return f"must be given: {text}" if value == "???" else text


def described(field: FieldInfo) -> str:
    """The description as a comment: without its full stop, and in lower case where it begins with a plain word."""
    text = " ".join((field.description or "").split()).removesuffix(".")
    is_plain = re.match(r"[A-Z][a-z]*\b", text)
    return text[0].lower() + text[1:] if is_plain else text
