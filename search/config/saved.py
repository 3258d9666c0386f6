"""Reads a configuration that a search saved. Somebody else may have written it: it is data, of a bounded size."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from search.files import read_regular_file

MAX_BYTES = 2**18  # of a configuration file; ours have some KB
MAX_DEPTH = 20  # of lists and mappings within each other; ours have six


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, by which a small file could become huge."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it has aliases (*name), by which a small file could become huge")
        return super().compose_node(parent, index)


def read_saved_config(path: str | Path) -> dict[str, Any]:
    """The content of a `config.yaml` as nested plain data.

    Raises:
        ValueError: It is not a regular file or not YAML, is too large or too deep, has aliases, or a text that would
            be replaced by something of this machine: `${oc.env:NAME}`.
    """
    try:
        loaded = yaml.load(
            read_regular_file(path, MAX_BYTES, inside=Path(path).parent).decode("utf-8"), Loader=_PlainLoader
        )
        for place, value in walk(loaded):
            if isinstance(value, str) and "${" in value:
                raise ValueError(f"{place}={value[:100]}: write the value itself in place of ${{...}}")
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a configuration, or is incomplete: {reason}") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} is not a configuration; a run folder has one in config.yaml")
    return loaded


def walk(value: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every value within nested plain data, with its dotted place; ValueError where it is nested too deep."""
    if depth > MAX_DEPTH:
        raise ValueError(f"{place[:200]} is nested too deep, more than {MAX_DEPTH} levels")
    yield place, value
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
        yield from ((f"{place}.{key}" if place else key, key) for key, _ in items)
    elif isinstance(value, list | tuple):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return
    for key, item in items:
        yield from walk(item, f"{place}.{key}" if place else key, depth + 1)
