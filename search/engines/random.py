"""Random search, which every other engine has to beat; and how engines draw rows and never repeat one."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from search.engines.base import Engine, EngineInputs
from search.engines.row_queue import QueueState
from search.engines.state import keys_of_rows, stack_rows

TRIES = 20  # fresh draws before counting on; more only matters in spaces that are nearly exhausted


class RandomEngine(Engine):
    """Seeds first, then random rows, each row once, until the space is exhausted.

    Any number of objectives: `tell` is ignored.
    """

    def __init__(self, start: EngineInputs) -> None:
        self.start = start
        self.waiting: list[np.ndarray] = list(start.seeds)
        self.asked: set[bytes] = set()

    def ask(self, n: int) -> np.ndarray:
        """The next n rows, however they are split into calls."""
        rows: list[np.ndarray] = []
        while len(rows) < n and (row := self._next()) is not None:
            self.asked.add(row.tobytes())
            rows.append(row)
        return np.array(rows, dtype=np.int64).reshape(len(rows), len(self.start.genes))

    def state(self) -> dict[str, Any]:
        """The rows that were asked for, and the seeds that wait."""
        genes = len(self.start.genes)
        return {"asked": stack_rows(sorted(self.asked), genes), "waiting": stack_rows(self.waiting, genes)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        saved = QueueState.read(state, self.start)
        self.asked, self.waiting = set(keys_of_rows(saved.asked)), list(saved.waiting)

    def _next(self) -> np.ndarray | None:
        while self.waiting:
            if (row := self.waiting.pop(0)).tobytes() not in self.asked:
                return row
        for _ in range(TRIES):
            if (row := draw(self.start.rng, self.start.levels)).tobytes() not in self.asked:
                return row
        return count_on(row, self.start.levels, self.asked)


def draw(rng: np.random.Generator, levels: np.ndarray) -> np.ndarray:
    """A random row [G] with a random share of genes that are not 0.

    If each gene were drawn independently, all rows would have about the same share switched on, and the same cost.
    """
    on = (rng.random(len(levels)) < rng.random()) & (levels > 1)
    return np.where(on, rng.integers(1, np.maximum(levels, 2)), 0).astype(np.int64)


def count_on(row: np.ndarray, levels: np.ndarray, asked: Collection[bytes]) -> np.ndarray | None:
    """The first row that was not asked for, counting up from `row` like an odometer, the last gene fastest.

    Args:
        row: Where counting begins [G].
        levels: The number of levels of each gene [G].
        asked: The bytes of every row that was asked for.

    Returns:
        The row [G]; None where all rows were asked for.

    Example:
        >>> import numpy as np
        >>> from search.engines.random import count_on
        >>> row = np.array([0, 1])
        >>> count_on(row, np.array([2, 2]), {row.tobytes()}).tolist()
        [1, 0]
    """
    if len(asked) >= math.prod(levels.tolist()):
        return None
    row = row.copy()
    while row.tobytes() in asked:
        for gene in reversed(range(len(row))):
            row[gene] = (row[gene] + 1) % levels[gene]
            if row[gene]:
                break
    return row
