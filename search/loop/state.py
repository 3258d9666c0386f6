"""All that a search needs to go on after it was killed."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from search.engines.base import Engine
from search.loop import checkpoint
from search.profile.costs import Costs

log = logging.getLogger("search")


@dataclass
class SearchState:
    """All that a search needs to go on after it was killed; plain data, pickled after every generation.

    An entry of `archive` is a dictionary with `x` (the row), `values` (by objective, one per prompt), `scores`
    [M] (minimised), `generation`, and `plain` (whether its solver was left as its genes say).
    """

    engine: Engine
    costs: Costs
    presets: dict[str, np.ndarray]  # rows [G] by name
    block_executions: float
    unshared: float  # block executions if runs shared nothing
    generation: int = 0
    seconds: float = 0.0
    archive: dict[str, dict[str, Any]] = field(default_factory=dict)  # by digest, in the order of evaluation
    asked: int = 0
    lost: int = 0  # candidates that lost their race
    failed: int = 0  # candidates that could not be scored
    counted: set[int] = field(default_factory=set)  # see Evaluator
    halved: dict[str, int] = field(default_factory=dict)  # see Evaluator
    history: list[dict[str, float]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the checkpoint; a search that is killed here resumes from the previous generation."""
        checkpoint.save_checkpoint(self, path)

    @staticmethod
    def load(path: Path, on_message: Callable[[str], None] = log.warning) -> "SearchState":
        """Read what `save` wrote; ValueError where no checkpoint is intact."""
        return cast(SearchState, checkpoint.load_checkpoint(path, on_message))
