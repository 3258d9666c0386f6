"""Types of configuration values: numbers and addresses with their limits."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def integer(low: int, high: int, multiple_of: int = 1, null: bool = False) -> BeforeValidator:
    """Validator of an integer from `low` to `high` (or null, if `null`), whose message states these limits."""
    step = f" that {multiple_of} divides" if multiple_of > 1 else ""

    def is_valid(value: Any) -> bool:
        return type(value) is int and low <= value <= high and value % multiple_of == 0

    return rule(is_valid, f"a whole number from {low} to {high}{step}", null)


def real_number(low: float, high: float, null: bool = False) -> BeforeValidator:
    """Validator of a finite number from `low` to `high` (or null, if `null`), whose message states these limits."""

    def is_valid(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high

    return rule(is_valid, f"a number from {low:g} to {high:g}", null)


def rule(is_valid: Callable[[Any], bool], words: str, null: bool) -> BeforeValidator:
    """Validator of values for which `is_valid`; its message is `give {words}`."""

    def check(value: Any) -> Any:
        if not (is_valid(value) or (null and value is None)):
            raise ValueError(f"give {words}{', or null' if null else ''}")
        return value

    return BeforeValidator(check)


def is_address(value: Any) -> bool:
    """Whether a value is the address of a Ray cluster: auto, host:port or ray://host:port."""
    return isinstance(value, str) and bool(re.fullmatch(r"auto|(ray://)?[\w.-]+:\d{1,5}", value))


def is_package_or_folder(value: Any) -> bool:
    """Whether a value is the name of a package, or a folder that exists, with a slash in it."""
    return isinstance(value, str) and (value.isidentifier() or ("/" in value and Path(value).expanduser().is_dir()))


def as_list(value: Any) -> Any:
    """A text as a list of one, null as an empty list."""
    return [] if value is None else [value] if isinstance(value, str) else value


ClassPath = Annotated[str, Field(pattern=r"^\w+(\.\w+)+$")]
Seed = Annotated[int, integer(0, 2**32 - 1)]
Pixels = Annotated[int | None, integer(16, 8192, multiple_of=8, null=True)]
Limit = Annotated[int | None, integer(1, 10**12, null=True)]
Trusted = Annotated[str, rule(is_package_or_folder, "the name of a package, or a folder as ./<folder>", null=False)]
