"""From lines of prompts to arguments of a pipeline's call."""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

EMPTY_CLASS = 1000  # what DiTPipeline takes for the unconditional class


def prompt_arguments(pipe: Any, parameters: Sequence[str], prompts: Sequence[str]) -> dict[str, Any]:
    """The arguments of a call that B prompts stand for.

    A line is the text of a prompt; of a class-conditional pipeline the name of a class. A line that begins with { is
    JSON, any arguments of the call by name; values of pictures are paths of files.

    Args:
        pipe: The pipeline.
        parameters: The names of the arguments of its call.
        prompts: B lines.

    Returns:
        Lists of B values by name; for one line the values themselves.

    Raises:
        ValueError: A line names an unknown class or argument, or lines name different ones.
    """
    if "prompt" not in parameters and "class_labels" in parameters and not prompts[0].startswith("{"):
        return {"class_labels": [_class_number(pipe, prompt) for prompt in prompts]}
    rows = [_arguments(prompt, parameters) for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        if row.keys() != rows[0].keys():
            raise ValueError(
                f"the prompts {prompts[0]!r:.80} and {prompt!r:.80} give different arguments; give all the same ones, "
                "or run them one by one: prompts.batch=1"
            )
    if len(rows) == 1:
        return rows[0]
    return {name: [row[name] for row in rows] for name in rows[0]}


def text_of(prompt: str) -> str:
    """The text of a line: of JSON arguments that of `prompt`, else the line."""
    return str(json.loads(prompt).get("prompt", "")) if prompt.startswith("{") else prompt


def is_picture(name: str, value: Any) -> bool:
    """Whether the value of an argument is the file of a picture."""
    return isinstance(value, str) and "image" in name and "embed" not in name


def _arguments(prompt: str, parameters: Sequence[str]) -> dict[str, Any]:
    if not prompt.startswith("{"):
        return {"prompt": prompt}
    try:
        given = json.loads(prompt)
    except json.JSONDecodeError as error:
        raise ValueError(f"the prompt {prompt!r:.80} begins with {{ and is not JSON: {error}") from None
    if unknown := sorted(given.keys() - set(parameters)):
        near = difflib.get_close_matches(unknown[0], parameters, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(parameters)}"
        raise ValueError(f"the prompt {prompt!r:.80} gives {unknown[0]}, which the pipeline does not take; {hint}")
    return {name: _value(prompt, name, value) for name, value in given.items()}


def _value(prompt: str, name: str, value: Any) -> Any:
    """A value as the call takes it: pictures are loaded from their files."""
    if not is_picture(name, value):
        return value
    from diffusers.utils import load_image

    try:
        return load_image(value)
    except Exception as error:  # no such file, no picture, no address
        raise ValueError(f"the prompt {prompt!r:.80} names a picture that cannot be read: {error}") from None


def _class_number(pipe: Any, name: str) -> int:
    """The number of a class; ValueError suggests classes with similar names."""
    labels: Mapping[str, int] = pipe.labels
    if not name:
        return EMPTY_CLASS
    if not labels:
        raise ValueError(f"this {type(pipe).__name__} has no class names; its model_index.json needs id2label")
    if name not in labels:
        near = difflib.get_close_matches(name, labels, n=3, cutoff=0.5)
        like = f"did you mean {' or '.join(near)}?" if near else f"for example {', '.join(list(labels)[:5])}"
        raise ValueError(f"{name!r} is not one of the {len(labels)} class names of this {type(pipe).__name__}; {like}")
    return int(labels[name])
