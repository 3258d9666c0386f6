"""Check the arguments of an engine before anything is loaded or measured."""

import importlib
import inspect
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, get_type_hints

import numpy as np
from pydantic import TypeAdapter, ValidationError

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
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    cls = _class(str(config["_target_"]))
    parameters = dict(list(inspect.signature(cls).parameters.items())[1:])
    hints = get_type_hints(cls.__init__)
    for name, value in arguments.items():
        if name not in parameters:
            there = ", ".join(f"engine.{key}" for key in parameters) or "none"
            raise ValueError(f"there is no engine.{name} of {cls.__name__}; its arguments: {there}")
        if isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) <= LARGEST:
            raise ValueError(f"engine.{name}={value}: give a number of at most {LARGEST}")
        try:
            TypeAdapter(hints.get(name, Any)).validate_python(value, strict=isinstance(value, bool))
        except ValidationError as error:
            text = error.errors()[0]["msg"].removeprefix("Input should be ")
            raise ValueError(f"engine.{name}={value!s:.200}: give {text}") from None
    proposals: dict[str, Any] = defaultdict(lambda: lambda: np.zeros((1, 2), dtype=np.int64))
    inputs = EngineInputs([Gene("a", 2), Gene("b", 2)], objectives, np.random.default_rng(0), proposals=proposals)
    construct: Any = cls  # each class takes arguments of its own
    construct(inputs, **arguments)


def _class(target: str) -> type[Engine]:
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"engine: {target!r} cannot be imported: {error}") from None
    if not (isinstance(found, type) and issubclass(found, Engine)):
        raise ValueError(f"engine: {target!r} is not a subclass of search.engines.base.Engine")
    return found
