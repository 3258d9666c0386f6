"""Lines of Python that apply a schedule, to copy."""

import json
from collections.abc import Iterable, Mapping
from typing import Any


def apply_arguments(letters: Iterable[str]) -> str:
    """The arguments of `schedule.apply(…)`: the pipeline, and those that have to be given, by their letters."""
    models = ", ".join(f'"{letter}": pipe_{letter}' for letter in letters)
    return f"pipe, models={{{models}}}" if models else "pipe"


def usage_snippet(file: str, models: Mapping[str, Mapping[str, Any]] | None = None) -> list[str]:
    """Lines of Python that run a pipeline with a schedule file; `models` is `models.names` of the schedule."""
    models = _pipelines_to_load(models) if models else {}
    loading = []
    for letter, part in models.items():
        text = part.get("name") or part["class"]  # of a file: on one line it stays a comment
        name = "".join(c for c in " ".join(text.split()) if c.isprintable())
        loading.append(f"pipe_{letter} = DiffusionPipeline.from_pretrained(...)  # {name}")
    return [
        "from diffusers import DiffusionPipeline",
        "from search import Schedule",
        "pipe = DiffusionPipeline.from_pretrained(...)",
        *loading,
        f"schedule = Schedule.load({json.dumps(file, ensure_ascii=False)})",
        f"handle = schedule.apply({apply_arguments(models)})",
        'image = pipe("a prompt", **schedule.call).images[0]',
    ]


def _pipelines_to_load(models: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    """Those of `models.names` that are not in the tensors file."""
    from search.schedule.parts.gaussian import GAUSSIAN  # takes seconds: it imports torch

    return {letter: part for letter, part in models.items() if part["class"] != GAUSSIAN}
