"""Numbers and addresses with the limits that a configuration allows."""

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def integer(low: int, high: int, multiple_of: int = 1, null: bool = False) -> BeforeValidator:
    """An integer from low to high, or null where that is allowed; the message says so."""
    step = f" that {multiple_of} divides" if multiple_of > 1 else ""

    def fits(value: Any) -> bool:
        return type(value) is int and low <= value <= high and value % multiple_of == 0

    return _rule(fits, f"a whole number from {low} to {high}{step}", null)


def real_number(low: float, high: float, null: bool = False) -> BeforeValidator:
    """A finite number from low to high, or null where that is allowed; the message says so."""

    def fits(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high

    return _rule(fits, f"a number from {low:g} to {high:g}", null)


def _rule(fits: Callable[[Any], bool], words: str, null: bool) -> BeforeValidator:
    def check(value: Any) -> Any:
        if not (fits(value) or (null and value is None)):
            raise ValueError(f"give {words}{', or null' if null else ''}")
        return value

    return BeforeValidator(check)


def _is_address(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"auto|(ray://)?[\w.-]+:\d{1,5}", value))


ClassPath = Annotated[str, Field(pattern=r"^\w+(\.\w+)+$")]
Seed = Annotated[int, integer(0, 2**32 - 1)]
Pixels = Annotated[int | None, integer(16, 8192, multiple_of=8, null=True)]
Limit = Annotated[int | None, integer(1, 10**12, null=True)]
