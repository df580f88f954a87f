"""Reads what the docstring of a model, a data set, a task or a view says about its options.

The convention is Google's: the section "Args:" has one entry an option, as "hflip: Probability of a horizontal flip."
The first sentence is the description that users see, and the rest is for readers of the code. The value None is called
null, as in conf/.
"""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

ENTRY = re.compile(r"(?m)^ {4}(?=\w+(?:, \w+)*: )")


def described_options(entry: Callable[..., Any]) -> dict[str, str]:
    """Option → the first sentence of its description.

    A class inherits the descriptions of its base classes, so that a task based on another one need not repeat them.
    """
    target = entry.func if isinstance(entry, functools.partial) else entry
    described: dict[str, str] = {}
    for documented in reversed(inspect.getmro(target)) if inspect.isclass(target) else [target]:
        docstring = inspect.cleandoc(documented.__doc__ or "")
        section = re.search(r"^Args:\n((?: {4}.*\n?|\n)+)", docstring, re.MULTILINE)
        for text in ENTRY.split(section[1])[1:] if section else ():
            names, _, description = " ".join(text.split()).partition(": ")
            described |= dict.fromkeys(names.split(", "), re.split(r"(?<=\.) ", description)[0])
    return described
