"""docs/configuration.md: every key of train.py and eval.py with what it accepts, its default and its description.

`scripts/write_reference.py` writes the page.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from xcit.config import EvalConfig, TrainConfig
from xcit.config.accepted_values import accepted, joined, section_in, shown
from xcit.config.composition import Tables
from xcit.config.sections import OPEN_SECTIONS

from .conf_comments import ConfFile, described, section_of

Fields = Mapping[str, Mapping[str, FieldInfo]]
"""Key → the entry of the group's table → the field. The entry is "" for the keys that are the same for all entries."""

HEAD = """\
# Configuration

Every key of `train.py` and `eval.py`. Give a key as `key=value`, and choose a file of a group as `group=choice`:

```
python train.py model=xcit_s12 model.drop_path_rate=0.1 data=imagenet data.root=/path
```

The defaults are those of the files in [conf/](../conf). "Set by `recipe=`" means that recipes have different values.
A recipe may also change any other default. `--cfg job` at the end of a command shows the values of a run and stops.

`python scripts/write_reference.py` writes this page from the code ([how](extending.md#describe-the-options)). Please do
not edit it.
"""
EVAL = """\
## eval.py

It also takes `model=`, `data=` and `task=` with the keys above. The default is what the evaluated run was trained with.
A key without its group, as `data.root=/moved` or `data.workers=0`, changes the run's own data, model or task.
"""
OF_EVAL = {"evaluate": "How a checkpoint is evaluated. See [evaluate.md](evaluate.md#frozen-features)."}
"""The groups of eval.py alone."""
GROUPS = {
    "recipe": "A whole run. The default is the recipe with the name of the data set. See [recipes.md](recipes.md).",
    "data": "The images. See [data.md](data.md) and [shards.md](shards.md).",
    "model": "The model. See [weights.md](weights.md) for published weights.",
    "task": "What the model learns.",
    "augment": "How training images are changed. Which keys there are depends on the task.",
    "optim": "The optimizer and the learning rate.",
    "train": "The length, the batches and the checkpoints of training.",
    "logger": "Where metrics go besides `metrics.jsonl`.",
}


def reference(files: Sequence[ConfFile], tables: Tables) -> str:
    """The text of the page."""
    roots = {file.path.stem: file for file in files if file.path.parent == file.conf}
    names = (*GROUPS, *OF_EVAL)
    of_group = {name: [file for file in files if file.path.parent == file.conf / name] for name in names}
    root, recipes = roots["train"], of_group["recipe"]
    page = [HEAD, "## The run", "", *key_table(leaves(TrainConfig), "", root, recipes, "recipe")]
    for group, about in GROUPS.items():
        page += [f"## {group}", "", about, "", *group_tables(group, TrainConfig, root, of_group, tables)]
    page += [EVAL, *key_table(leaves(EvalConfig), "", roots["eval"], [], "")]
    for group, about in OF_EVAL.items():
        page += [f"### {group}", "", about, "", *group_tables(group, EvalConfig, roots["eval"], of_group, tables)]
    return "\n".join(page).rstrip() + "\n"


def group_tables(
    group: str, schema: type[BaseModel], root: ConfFile, of_group: Mapping[str, Sequence[ConfFile]], tables: Tables
) -> Iterator[str]:
    """The tables of a group: its choices, the keys that all of them have, and the options of each."""
    choices = of_group[group]
    if choices:
        yield from table([f"`{group}=`", "content"], [[f"`{file.path.stem}`", file.headline] for file in choices])
    section = section_in(schema.model_fields[group]) if group in schema.model_fields else None
    if section:
        sources, setter = (choices, group) if choices else (of_group["recipe"], "recipe")
        yield from key_table(leaves(section), f"{group}.", root, sources, setter)
    if group in tables:
        yield from option_tables(group, tables, choices, root)


def leaves(section: type[BaseModel]) -> Fields:
    """The keys of a section that hold values; the others are the sections below it."""
    return {name: {"": field} for name, field in section.model_fields.items() if name not in (*GROUPS, *OF_EVAL)}


def option_tables(group: str, tables: Tables, choices: Sequence[ConfFile], root: ConfFile) -> Iterator[str]:
    """A table for each set of options; entries whose options are explained alike share one."""
    alike: dict[str, dict[str, dict[str, FieldInfo]]] = {}
    for entry in tables[group]:
        section = section_of(group, entry, tables)
        options = {name: field for name, field in section.model_fields.items() if name in section.option_names}
        explained = repr([(name, accepted(field), field.description) for name, field in options.items()])
        for name, field in options.items():
            alike.setdefault(explained, {}).setdefault(name, {})[entry] = field
    chosen_by = OPEN_SECTIONS[group].chosen_by
    for fields in alike.values():
        entries = list(next(iter(fields.values())))
        sources = [file for file in choices if file.entries.get(group) in entries]
        names = entries if chosen_by else [file.path.stem for file in sources]
        if names:
            yield from [f"With {joined([f'`{chosen_by or group}={name}`' for name in names])}:", ""]
            yield from key_table(fields, f"{group}.", root, sources, group)


def key_table(fields: Fields, prefix: str, root: ConfFile, sources: Sequence[ConfFile], setter: str) -> Iterator[str]:
    """A row for each key. sources: the files of conf/ that may set it, as choices of the group `setter`."""
    rows = []
    for name, of_entry in fields.items():
        key, field = prefix + name, next(iter(of_entry.values()))
        rows.append([f"`{key}`", accepted(field), default(key, of_entry, root, sources, setter), sentence(key, field)])
    return table(["key", "accepts", "default", "description"], rows)


def default(
    key: str, of_entry: Mapping[str, FieldInfo], root: ConfFile, sources: Sequence[ConfFile], setter: str
) -> str:
    """The value of a key in the files of conf/, otherwise that of the schema."""
    if key in root.values and (setter == "recipe" or not any(key in file.values for file in sources)):
        return code(root.values[key])
    field = next(iter(of_entry.values()))
    given = {
        file.path.stem: file.values.get(key) or initial(of_entry.get(file.entries.get(setter, ""), field))
        for file in sources
    } or {"": initial(field)}
    (usual, number), *others = Counter(given.values()).most_common()
    exceptions = [name for name, value in given.items() if value != usual]
    if not others:
        return code(usual)
    if len(exceptions) == 1 and number > 1:
        return f"{code(usual)}; {code(given[exceptions[0]])} with `{setter}={exceptions[0]}`"
    return f"set by `{setter}=`"


def initial(field: FieldInfo) -> str:
    """The default in the schema, as Hydra writes it: ??? if there is none."""
    return "???" if field.is_required() else shown(field.get_default(call_default_factory=True))


def code(value: str) -> str:
    """A value as code, and the name of a key instead of ${key} or ${oc.select:key,otherwise}."""
    if value == "???":
        return "must be given"
    reference = r"\$\{(?:oc\.select:)?([\w.]+)(?:,[^}]*)?\}"
    alone = re.fullmatch(reference, value)
    text = alone[1] if alone else re.sub(reference, r"<\1>", value)
    return f"`{text}`"


def sentence(key: str, field: FieldInfo) -> str:
    """The description as a sentence."""
    text = described(key, field)
    return f"{text[:1].upper()}{text[1:]}."


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table in Markdown, with an empty line behind it."""
    for row in [heads, ["---"] * len(heads), *rows]:
        yield f"| {' | '.join(row)} |"
    yield ""
