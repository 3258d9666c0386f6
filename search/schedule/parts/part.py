"""The base of all parts of the schedule file, and checks of plain data."""

import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from search.schedule.errors import ScheduleError

Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class Part(BaseModel):
    """One part of the file: no unknown fields, no conversions between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


MAX_ENTRIES = 20_000  # of one JSON object or array


def check_data(value: Any, where: str, depth: int = 0) -> None:
    """Raise ScheduleError unless a value is plain finite JSON data of bounded depth and size; `where` names it."""
    if depth > 20:
        raise ScheduleError(f"{where[:80]} is nested more than 20 deep")
    if isinstance(value, dict | list | tuple) and len(value) > MAX_ENTRIES:
        raise ScheduleError(f"{where[:200]} has {len(value)} entries; admissible are {MAX_ENTRIES}")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ScheduleError(f"{where}: a key is a {type(key).__name__}; keys are text")
            check_data(key, where, depth + 1)
            check_data(inner, f"{where}.{key[:80]}", depth + 1)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            check_data(inner, f"{where}[{i}]", depth + 1)
    elif isinstance(value, str):
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise ScheduleError(f"{where}: {value[:40]!r} is not valid Unicode text")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ScheduleError(f"{where} is {value}; numbers must be finite")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise ScheduleError(f"{where} has {value.bit_length()} bits; whole numbers must fit in 64")
    elif value is not None and not isinstance(value, bool | int | float):
        raise ScheduleError(f"{where} is a {type(value).__name__}, which is not a JSON value")
