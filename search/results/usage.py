"""How a schedule is applied, in the words of a snippet that people copy."""

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def pipeline_class_name(others: Iterable[str]) -> str:
    """What stands in `schedule.apply(…)`: the pipeline, and those of the other denoisers that a schedule names."""
    brought = ", ".join(f'"{letter}": pipe_{letter}' for letter in others)
    return f"pipe, models={{{brought}}}" if brought else "pipe"


def usage_snippet(file: str, others: Mapping[str, Mapping[str, Any]] | None = None) -> list[str]:
    """Lines of Python that run a pipeline by a schedule file; `others` is `models.names` of the schedule."""
    loaded = []
    for letter, part in (others or {}).items():
        name = " ".join((part.get("name") or part["class"]).split())  # somebody's text: on one line it stays a comment
        loaded.append(f"pipe_{letter} = DiffusionPipeline.from_pretrained(...)  # {name}")
    return [
        "from diffusers import DiffusionPipeline",
        "from search import Schedule",
        "pipe = DiffusionPipeline.from_pretrained(...)",
        *loaded,
        f"schedule = Schedule.load({json.dumps(file, ensure_ascii=False)})",
        f"handle = schedule.apply({pipeline_class_name(others or {})})",
        'image = pipe("a prompt", **schedule.made["call"]).images[0]',
    ]
