"""Options of the small commands as `key=value`, and one line for a mistake instead of a traceback."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from search.config.compose import GROUPS, message_of_user_error, silence_libraries
from search.config.hints import closest_name_hint
from search.config.settings import Config


@dataclass(frozen=True)
class Options:
    """The options of a command by name, and overrides of the search's configuration."""

    given: dict[str, str]
    overrides: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> str:
        return self.given[name]


def parse_options(
    arguments: Sequence[str], defaults: Mapping[str, str], first: str | None = None, configurable: bool = False
) -> Options:
    """Options from `key=value` arguments.

    Args:
        arguments: The command line without the program's name.
        defaults: All options of the command with their defaults.
        first: The option that an argument without `=` sets.
        configurable: Whether keys of the search's configuration (`model=`, `compute.device=`) are accepted.

    Raises:
        ValueError: An unknown option; the message lists those that exist.
    """
    given, overrides = dict(defaults), []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key in defaults and equals:
            given[key] = value
        elif configurable and equals and key.lstrip("+").partition(".")[0] in {*GROUPS, *Config.model_fields}:
            overrides.append(argument)
        elif first is not None and not argument.startswith("-") and ("/" in key or not equals):
            given[first] = argument
        else:
            names = [f"{name}=" for name in defaults] + (["model=", "prompts.", "compute."] if configurable else [])
            raise ValueError(
                f"{argument!r} is not an option.{closest_name_hint(key, defaults)} There are {', '.join(names)}"
            )
    return Options(given, overrides)


def run_command(
    arguments: Sequence[str],
    text: str | None,
    work: Callable[[Options], int | None],
    defaults: Mapping[str, str],
    first: str | None = None,
    configurable: bool = False,
) -> int:
    """Parse the options, call `work`, and return its exit code (None is 0), or 2 with one line for a user's mistake."""
    if any(argument in ("--help", "-h") for argument in arguments):
        print(text)
        return 0
    silence_libraries()
    try:
        return work(parse_options(arguments, defaults, first, configurable)) or 0
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 130
    except Exception as error:
        message = str(error) if isinstance(error, OSError) else message_of_user_error(error)
        if message is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2


def whole_number_option(options: Options, name: str, low: int, high: int) -> int:
    """An option as a whole number from `low` to `high`; ValueError states these limits."""
    text = options[name]
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise ValueError(f"{name}={text}: give a whole number from {low} to {high}")
    return int(text)


def number_option(name: str, options: Options, defaults: Mapping[str, str]) -> float:
    """An option as a number; ValueError names it."""
    try:
        return float(options[name])
    except ValueError:
        raise ValueError(
            f"{name}={options[name]!r} is not a number; type for example {name}={defaults[name]}"
        ) from None
