"""The values that a key of the configuration accepts, in plain words, for error messages and the reference.

The words follow from the types in the schema, so nobody writes them by hand. Importing this file does not import torch.
"""

import types
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

NOUNS = {int: ("an integer", "integers"), float: ("a number", "numbers"), str: ("a string", "strings")}
COUNTS = {1: "one", 2: "two", 3: "three", 4: "four"}


def accepted(field: FieldInfo) -> str:
    """What a field accepts, as "an integer of at least 1, auto or null"."""
    return joined(alternatives(field.annotation, field.metadata))


def choices(field: FieldInfo) -> list[str]:
    """The names among which a field chooses, as fp32, bf16 and fp16; none if it accepts other values, too."""
    found = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return [shown(choice) for choice in found]


def find_field(schema: type[BaseModel], path: Iterable[object]) -> tuple[list[str], FieldInfo | None]:
    """The part of a path that is a key of the schema, such as ["train", "epochs"], and the key's field.

    In the path of a pydantic error, an index into a list or one of the types that pydantic tried may follow.
    """
    found: list[str] = []
    field: FieldInfo | None = None
    section: type[BaseModel] | None = schema
    for name in path:
        if section is None or name not in section.model_fields:
            break
        found.append(str(name))
        field = section.model_fields[str(name)]
        section = section_in(field)
    return found, field


def section_in(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a key stands for; None if the key has a value of its own."""
    kinds = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def alternatives(kind: Any, metadata: Iterable[Any] = (), *, plural: bool = False) -> list[str]:
    """One phrase for each type of a union, and for each choice of a Literal; null is the last."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return alternatives(arguments[0], [*metadata, *arguments[1:]], plural=plural)
    if origin in (Union, types.UnionType):
        found = [phrase for argument in arguments for phrase in alternatives(argument, metadata, plural=plural)]
        return sorted(dict.fromkeys(found), key="null".__eq__)
    if origin is Literal:
        return [shown(choice) for choice in arguments]
    if kind is bool:
        return ["true", "false"]
    if kind in (None, types.NoneType):
        return ["null"]
    if kind is Any:
        return ["any value"]
    bounds = bounds_of(metadata)
    if origin is list:
        return [f"a list of {amount(bounds)}{joined(alternatives(arguments[0], plural=True))}"]
    if kind in NOUNS:
        return [NOUNS[kind][plural] + limits(bounds, whole=kind is int)]
    if kind is dict or origin is dict or (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return ["a mapping such as {key: value}"]
    return [f"a {getattr(kind, '__name__', kind)}"]


def bounds_of(metadata: Iterable[Any]) -> dict[str, Any]:
    """The constraints ge, gt, le, lt, min_length and max_length among the metadata of a type."""
    nested = [inner for entry in metadata for inner in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]
    names = ("ge", "gt", "le", "lt", "min_length", "max_length")
    return {name: getattr(entry, name) for entry in nested for name in names if getattr(entry, name, None) is not None}


def limits(bounds: dict[str, Any], *, whole: bool) -> str:
    """The range of a number as words that follow its noun."""
    if whole and "lt" in bounds:
        bounds = {**bounds, "le": bounds["lt"] - 1}
        del bounds["lt"]
    low, high = bounds.get("ge"), bounds.get("le")
    if low is not None and high is not None:
        return f" from {low} to {high}"
    words = {"ge": "of at least", "gt": "greater than", "le": "at most", "lt": "less than"}
    found = [f"{word} {bounds[name]}" for name, word in words.items() if name in bounds]
    of = " of" if found and found[0].startswith("at most") else ""
    return of + " and".join(f" {phrase}" for phrase in found)


def amount(bounds: dict[str, Any]) -> str:
    """How many items a list has, as words before their noun."""
    least, most = bounds.get("min_length", 0), bounds.get("max_length")
    if most is None:
        return f"{COUNTS.get(least, least)} or more " if least else ""
    return f"{COUNTS.get(most, most)} " if least == most else f"{least} to {most} "


def joined(phrases: Sequence[str]) -> str:
    """Join alternatives: "a, b or c"."""
    is_long = any(" and " in phrase or " list of " in phrase for phrase in phrases)
    last = ", or " if is_long else " or "
    return last.join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))


def shown(value: Any) -> str:
    """A value as one types it: null, true, [1,2] or {a:1}."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case list() | tuple():
            return f"[{','.join(map(shown, value))}]"
        case dict():
            return "{" + ",".join(f"{key}:{shown(item)}" for key, item in value.items()) + "}"
        case _:
            return str(value)
