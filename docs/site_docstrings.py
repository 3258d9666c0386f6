"""Examples in docstrings as blocks of code on the site."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^(?P<indent> *)>>> .*(?:\n(?P=indent)[^\s].*)*", re.M)


class Examples(griffe.Extension):
    """Put a fence around `>>>` lines and what they give, so that they are not read as quotations."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class and function, when it was read."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(fenced, obj.docstring.value)


def fenced(example: re.Match[str]) -> str:
    """The example between fences, without what is said to doctest."""
    indent, text = example["indent"], re.sub(r"  # doctest: \+\w+", "", example[0])
    return f"{indent}```pycon\n{text}\n{indent}```"
