"""Checks of values in files of other tools, which may be anything."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from search.schedule.errors import ScheduleError
from search.schedule.plan.tokens import MAX_STEPS, OFF


def object_of(value: Any, where: str) -> Mapping[Any, Any]:
    """The value, an object; else a ScheduleError that begins with `where`."""
    if isinstance(value, Mapping):
        return value
    raise ScheduleError(f"{where} is a {type(value).__name__}; it has to be an object")


def list_of(value: Any, where: str) -> Sequence[Any]:
    """The value, a list of 1 to MAX_STEPS entries; else a ScheduleError."""
    if isinstance(value, list) and 0 < len(value) <= MAX_STEPS:
        return value
    problem = f"has {len(value)} entries" if isinstance(value, list) else f"is a {type(value).__name__}"
    raise ScheduleError(f"{where[:80]} {problem}; it has to be a list of 1 to {MAX_STEPS}")


def same_keys(data: Mapping[Any, Any], wanted: Iterable[str], where: str) -> None:
    """Raise ScheduleError where the keys of `data` are not the `wanted` ones."""
    names = list(wanted)
    for word, keys in (("lacks", [name for name in names if name not in data]), ("has", set(data) - set(names))):
        if keys:
            wrong = sorted(map(str, keys))[0]
            raise ScheduleError(f"{where} {word} {wrong[:80]!r}; it has to have {names[0]} to {names[-1]}")


def steps_of(value: Any, where: str) -> int:
    """The value, a number of steps; else a ScheduleError."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_STEPS:
        return value
    raise ScheduleError(f"{where} is {value!r:.40}; admissible are 1 to {MAX_STEPS}")


def count_of(value: Any, where: str) -> int:
    """The value, a whole number from 0 on; else a ScheduleError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ScheduleError(f"{where} is {value!r:.40}; it has to be a whole number from 0 on")


def number_of(value: Any, where: str, highest: float) -> float:
    """The value, a number from 0 to `highest`; else a ScheduleError."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= highest and value < math.inf:
        return float(value)
    raise ScheduleError(f"{where} has {value!r:.40}; admissible are numbers from 0 to {highest:g}")


def action_of(bit: Any, where: str) -> str:
    """C of 1 or true, R of 0 or false."""
    if isinstance(bit, int) and bit in (0, 1):
        return OFF if bit else "R"
    raise ScheduleError(f"{where[:200]} is {bit!r:.40}; each entry is 1 (compute) or 0 (reuse)")
