"""Read files of other tools, whose kind is detected, as schedules of a pipeline."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from search.schedule.bounded_file import read_bounded
from search.schedule.document import FORMAT
from search.schedule.errors import ScheduleError
from search.schedule.exchange.ays import from_ays
from search.schedule.exchange.cache_dit import MASKS, from_scm
from search.schedule.exchange.deepcache import from_deepcache
from search.schedule.exchange.ecad import from_ecad
from search.schedule.exchange.grid import sampler_of
from search.schedule.exchange.magcache import from_magcache
from search.schedule.exchange.masks import Parts
from search.schedule.exchange.sdcpp import from_sdcpp
from search.schedule.exchange.sigmas import from_sigmas, from_timesteps
from search.schedule.exchange.smoothcache import from_smoothcache
from search.schedule.exchange.stock import from_diffusers
from search.schedule.model.identity import denoiser_of, model_part
from search.schedule.model.nodes import Tree
from search.schedule.reading import MAX_BYTES
from search.schedule.schedule import Schedule

MAX_YAML = 2**16  # bytes; cache-dit's configurations have a few lines
Sampler = Mapping[str, Any]


def load(path: str | Path, pipe: Any) -> Schedule:
    """Read a file of another tool as a schedule for a pipeline.

    Args:
        path: JSON, YAML or text; its kind is detected (`detect`).
        pipe: The pipeline that the schedule is for; grids of timesteps are those of its scheduler.

    Raises:
        ScheduleError: The file is damaged, of no known kind, or does not belong to this pipeline.
    """
    denoiser = denoiser_of(pipe)
    parts = read(path, Tree.of(denoiser), sampler_of(pipe))
    return Schedule.from_dict({"format": FORMAT, "model": model_part(denoiser)} | parts)


def read(path: str | Path, tree: Tree, sampler: Sampler | None = None) -> Parts:
    """Read the parts of a schedule from a file, JSON, YAML or text such as `1,1,0,1`, whose kind is detected.

    Args:
        path: The file.
        tree: The nodes of the denoiser.
        sampler: Class and config of the scheduler that sigmas and timesteps belong to.

    Returns:
        `steps`, and those of `plan`, `gates` and `sampler` that the file has.

    Raises:
        ScheduleError: The file cannot be read, or is wrong.
    """
    text = read_bounded(path, MAX_BYTES)
    try:
        return parts_of(_parsed(text), tree, sampler)
    except ScheduleError as error:
        raise ScheduleError(f"{path}: {error}") from None


def parts_of(data: Any, tree: Tree, sampler: Sampler | None = None) -> Parts:
    """The same from a file's content."""
    return READERS[detect(data)](data, tree, sampler)


def detect(data: Any) -> str:
    """The kind of a file's content: a key of READERS; ScheduleError where it is none of them."""
    if isinstance(data, str):
        return _detect_text(data)
    if isinstance(data, list):
        return "scm" if all(value in (0, 1) for value in data) or not _is_falling(data) else "sigmas"
    keys = set(data) if isinstance(data, Mapping) else set()
    for kind, any_of in KEYS.items():
        if any_of & keys:
            return kind
    if keys and all(isinstance(value, list) for value in data.values()):
        return "smoothcache"
    raise ScheduleError(
        "this is not a file of ECAD (cache_schedule), SmoothCache (a list for every component), cache-dit "
        f"({', '.join(MASKS)}), DeepCache (cache_interval), MagCache (mag_ratios), diffusers (scheduler and call), no "
        "table of AYS (ays), sigmas or timesteps"
        + (f"; it has {', '.join(sorted(map(str, keys)))[:200]}" if keys else "")
    )


def _detect_text(text: str) -> str:
    if "--sigmas" in text or "--scm-mask" in text:
        return "sdcpp"
    if "." in text:
        return "sigmas"
    return "timesteps" if re.search(r"[2-9]|\d\d", text) else "scm"


def _is_falling(data: list[Any]) -> bool:
    numbers = [v for v in data if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(numbers) == len(data) > 1 and all(a > b for a, b in zip(numbers, numbers[1:], strict=False))


# Of objects: any of these keys makes a file of that kind.
KEYS: Mapping[str, set[str]] = {
    "ecad": {"cache_schedule"},
    "magcache": {"mag_ratios"},
    "deepcache": {"cache_interval"},
    "scm": {*MASKS, "cache_config"},
    "ays": {"ays"},
    "diffusers": {"scheduler", "call"},
    "sigmas": {"sigmas"},
    "timesteps": {"timesteps"},
}

READERS: Mapping[str, Callable[[Any, Tree, Sampler | None], Parts]] = {
    "ecad": lambda data, tree, sampler: from_ecad(data, tree),
    "smoothcache": lambda data, tree, sampler: from_smoothcache(data, tree),
    "scm": lambda data, tree, sampler: from_scm(data, tree),
    "deepcache": lambda data, tree, sampler: from_deepcache(data, tree),
    "magcache": lambda data, tree, sampler: from_magcache(data, tree),
    "ays": lambda data, tree, sampler: from_ays(data, sampler),
    "diffusers": from_diffusers,
    "sdcpp": from_sdcpp,
    "sigmas": lambda data, tree, sampler: from_sigmas(_of(data, "sigmas"), sampler),
    "timesteps": lambda data, tree, sampler: from_timesteps(_of(data, "timesteps"), sampler),
}


def _of(data: Any, name: str) -> Any:
    return data[name] if isinstance(data, Mapping) else data


def _parsed(text: bytes) -> Any:
    if len(text) > MAX_BYTES:
        raise ScheduleError(f"the file has more than the {MAX_BYTES} bytes that a schedule may have")
    try:
        return json.loads(text)
    except RecursionError:
        raise ScheduleError("its JSON is nested too deep") from None
    except ValueError as error:
        if re.fullmatch(rb"[\d.\s,]+", text):
            return text.decode()
        if b"--sigmas" in text or b"--scm-mask" in text:
            return text.decode(errors="replace")
        if text.lstrip()[:1] not in (b"{", b"[") and len(text) <= MAX_YAML and isinstance(data := _yaml(text), dict):
            return data
        raise ScheduleError(f"this is not a complete JSON file: {error}") from None


def _yaml(text: bytes) -> Any:
    """The content of a YAML file, else None; without aliases, by which a small file could become huge."""
    try:
        import yaml
    except ImportError:
        raise ScheduleError("this is not JSON, and reading YAML takes PyYAML; type: pip install pyyaml") from None
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader)):
            return None
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
