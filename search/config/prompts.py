"""Read prompts from a text file, or take them as they are given."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from search.config.settings import CONF
from search.files import read_regular_file
from search.models.prompts import is_picture

MAX_BYTES = 2**26


def read_prompts(path: str | Sequence[str]) -> list[str]:
    """The prompts of a text file, one per line; lines that begin with # are comments.

    A line that begins with { is JSON: arguments of the pipeline's call by name, pictures by their files, which are
    looked for beside the file of prompts.

    Args:
        path: A file, the name of one in conf/prompts, or the lines themselves.

    Raises:
        ValueError: There is no such file, it has no prompt, or a line is not JSON.
    """
    if not isinstance(path, str):
        return [_with_paths(line, Path()) for line in path]
    file = Path(path).expanduser()
    if not file.is_file():
        file = CONF / "prompts" / path
    hint = "use prompts.calibration=<text file, one prompt a line> and prompts.held_out=<another>"
    if not file.is_file():
        raise ValueError(f"no prompt file {path!r}, here or among those that ship with the project; {hint}")
    try:
        text = read_regular_file(file, MAX_BYTES).decode("utf-8-sig")
        lines = [line.strip() for line in text.splitlines()]
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise ValueError(f"prompt file {path!r} is not UTF-8 text ({reason}); {hint}") from None
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"no prompt in {path!r}; {hint}")
    return [_with_paths(line, file.parent) for line in prompts]


def _with_paths(line: str, folder: Path) -> str:
    """A line of JSON arguments with the files of pictures as whole paths; any other line as it is."""
    if not line.startswith("{"):
        return line
    try:
        given = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"the prompt {line!r:.80} begins with {{ and is not JSON: {error}") from None
    for name, value in given.items():
        if is_picture(name, value) and "://" not in value:
            if not (file := folder / Path(value).expanduser()).is_file():
                raise ValueError(f"the prompt {line!r:.80} names {name}={value}, and there is no file {str(file)!r}")
            given[name] = str(file.resolve())
    return json.dumps(given, ensure_ascii=False)


def prompt_lists(
    prompts: str | Sequence[str | Mapping[str, Any]] | None, held_out: Sequence[str | Mapping[str, Any]] | None
) -> dict[str, Any]:
    """The settings of prompts that are given as lists; every second one is held out where no others are.

    Raises:
        ValueError: There is one prompt and none is held out.
    """
    if prompts is None or isinstance(prompts, str):  # the name of an option
        return {} if held_out is None else {"held_out": _lines(held_out), "held_out_count": None}
    lines = _lines(prompts)
    if held_out is None and len(lines) < 2:
        raise ValueError("a search needs prompts to choose on and others to report on; give prompts=[…] two or more")
    calibration, others = (lines, _lines(held_out)) if held_out is not None else (lines[::2], lines[1::2])
    counts = {"calibration_count": None, "held_out_count": None}
    return {"calibration": calibration, "held_out": others, **counts}


def _lines(prompts: Sequence[str | Mapping[str, Any]]) -> list[str]:
    return [prompt if isinstance(prompt, str) else json.dumps(dict(prompt), ensure_ascii=False) for prompt in prompts]
