"""What --help prints: the choices, and every setting with its value and its explanation."""

import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..config.accepted_values import shown
from .settings import Settings, comments_in

TEXT = {
    "train": (
        "Train an XCiT and evaluate it across resolutions.",
        "python train.py",
        "python train.py model=xcit_s12 data=imagenet data.root=/path",
        "python train.py data=folder data.root=~/photos pretrained=fb_dist_in1k",
        "torchrun --nproc-per-node=8 train.py model=xcit_s12 data=imagenet data.root=/path",
    ),
    "eval": (
        "Evaluate a checkpoint across resolutions.",
        "python eval.py checkpoint=runs/xcit_n12_digits/20261124-210000-123456",
        "python eval.py checkpoint=xcit_small_12_p16_224 data=imagenet data.root=/path 'resolutions=[160,224,320]'",
        "python eval.py checkpoint=xcit_small_12_p16_224 data=folder data.root=~/photos evaluate=knn",
    ),
}
INDENT = 42
"""Characters before the explanation of a setting."""


def help_text(settings: Settings, raw: DictConfig) -> str:
    """The help for the choices at hand.

    raw: the composed configuration, with Hydra's own at `hydra`.
    """
    what, *examples = TEXT[settings.root]
    width = max(100, shutil.get_terminal_size().columns)
    lines = [what, "", f"usage: python {settings.root}.py [GROUP=CHOICE …] [SETTING=VALUE …]", ""]
    lines += [f"  {example}" for example in examples]
    lines += ["", "Groups and their choices. [ ] marks what is chosen:"]
    for group in settings.groups:
        names = sorted(path.stem for path in (settings.conf / group).glob("*.yaml"))
        listed = " ".join(f"[{n}]" if n == raw.hydra.runtime.choices.get(group) else n for n in names)
        lines += textwrap.wrap(listed, width, initial_indent=f"  {group:9}", subsequent_indent=" " * 11)
    lines += ["", "Settings, with their values for these choices:"]
    comments = comments_in(settings.conf, settings.root, raw.hydra.runtime.choices)
    section = ""
    for key, value in leaves(OmegaConf.masked_copy(raw, [str(key) for key in raw if key != "hydra"])):
        if key.rpartition(".")[0] != section:
            section = key.rpartition(".")[0]
            lines.append("")
        start = f"  {key}={value}".ljust(INDENT - 1) + " "
        if len(start) > INDENT:
            lines.append(start.rstrip())
            start = " " * INDENT
        comment = comments.get(key, "")
        if value != "…":
            comment = comment.removeprefix("must be given: ")
        lines += textwrap.wrap(comment, width, initial_indent=start, subsequent_indent=" " * INDENT) or [start.rstrip()]
    return "\n".join([*lines, "", "docs/configuration.md explains the settings of all choices."])


def leaves(config: DictConfig) -> Iterator[tuple[str, str]]:
    """(key with dots, value as it is typed) of every setting; those of the root come first."""
    unresolved: Any = OmegaConf.to_container(config)
    for key, value in sorted(unresolved.items(), key=lambda item: isinstance(item[1], dict)):
        if isinstance(value, dict):
            for name in value:
                yield f"{key}.{name}", value_in(config[key], name)
        else:
            yield key, value_in(config, key)


def value_in(section: DictConfig, name: str) -> str:
    """A value as it is typed; … for one that must be given."""
    if OmegaConf.is_missing(section, name):
        return "…"
    try:
        value: Any = section[name]
        value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException:  # it refers to one that must be given
        return "…"
    return shown(value)
