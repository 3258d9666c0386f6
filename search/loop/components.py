"""The spaces and objectives of a configuration, made once their arguments have been checked."""

from collections.abc import Mapping
from typing import Any

from hydra.utils import instantiate

from search.engines.check import check_arguments


def make_components(section: str, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Make the objects of one section.

    Args:
        section: Of the configuration: space, objective or guard.
        configs: `_target_` and arguments by name.

    Raises:
        ValueError: A class has no such argument, or takes no such value; the message names the option.
        InstantiationException: There is no such class, or its constructor fails.
    """
    for name, config in configs.items():
        cls = instantiate({**config, "_partial_": True}).func
        if isinstance(cls, type):
            check_arguments(f"{section}.{name}", cls, config)
    return {name: instantiate(config) for name, config in configs.items()}
