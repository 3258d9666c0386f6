"""Check the arguments of engines, spaces and objectives before anything is loaded or measured."""

import importlib
import inspect
import sys
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, get_type_hints

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from search.engines.base import Engine, EngineInputs
from search.spaces.gene import Gene

LARGEST = 1_000_000  # of any number that an engine is given


def check_engine(config: Mapping[str, Any], objectives: int) -> None:
    """Raise ValueError where an engine does not exist or does not take these arguments.

    The engine is made once, for a space of two decisions, so that what its constructor refuses is refused here.

    Args:
        config: `_target_`, the engine's class, and its arguments.
        objectives: How many scores a row will have.
    """
    cls = _class(str(config["_target_"]))
    arguments = check_arguments("engine", cls, config, largest=LARGEST, given=1)
    proposals: dict[str, Any] = defaultdict(lambda: lambda: np.zeros((1, 2), dtype=np.int64))
    inputs = EngineInputs([Gene("a", 2), Gene("b", 2)], objectives, np.random.default_rng(0), proposals=proposals)
    construct: Any = cls  # each class takes arguments of its own
    construct(inputs, **arguments)


def check_arguments(
    key: str, cls: type, config: Mapping[str, Any], largest: float = sys.float_info.max, given: int = 0
) -> dict[str, Any]:
    """Check what a class is given by a configuration against the names and types of its constructor's parameters.

    Args:
        key: Where the configuration is, such as `objective.mmd`.
        cls: The class.
        config: Its arguments; names that begin with `_` are not arguments.
        largest: The largest absolute value of a number.
        given: How many of the first parameters are not given by the configuration.

    Returns:
        The arguments.

    Raises:
        ValueError: There is no such parameter, or it takes no such value.
    """
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    parameters = dict(list(inspect.signature(cls).parameters.items())[given:])
    any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    try:
        hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    except NameError:  # names that are imported for type checkers only
        hints = {}
    for name, value in arguments.items():
        if name not in parameters and not any_name:
            there = ", ".join(f"{key}.{name}" for name in parameters) or "none"
            raise ValueError(f"there is no {key}.{name} of {cls.__name__}; its arguments: {there}")
        if isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) <= largest:
            raise ValueError(f"{key}.{name}={value}: give a number of at most {largest:.7g}")
        if isinstance(value, Mapping) and "_target_" in value:  # an object that is made first
            continue
        try:
            adapter = TypeAdapter(hints.get(name, Any), config=ConfigDict(arbitrary_types_allowed=True))
            adapter.validate_python(value, strict=isinstance(value, bool))
        except ValidationError as error:
            text = error.errors()[0]["msg"].removeprefix("Input should be ")
            raise ValueError(f"{key}.{name}={value!s:.200}: give {text}") from None
    return arguments


def _class(target: str) -> type[Engine]:
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"engine: {target!r} cannot be imported: {error}") from None
    if not (isinstance(found, type) and issubclass(found, Engine)):
        raise ValueError(f"engine: {target!r} is not a subclass of search.engines.base.Engine")
    return found
