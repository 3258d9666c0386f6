"""Random search, which every other engine has to beat; and how engines draw rows and never repeat one."""

import math
from collections.abc import Collection

import numpy as np

from search.engines.base import Engine, EngineInputs

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

    def _next(self) -> np.ndarray | None:
        while self.waiting:
            if (row := self.waiting.pop(0)).tobytes() not in self.asked:
                return row
        for _ in range(TRIES):
            if (row := draw(self.start.rng, self.start.levels)).tobytes() not in self.asked:
                return row
        return count_on(row, self.start.levels, self.asked)


def draw(rng: np.random.Generator, levels: np.ndarray) -> np.ndarray:
    """A random row [G] that first draws its own share of genes that are not 0.

    Without this every row would have about the same share switched on, that is the same cost.
    """
    on = (rng.random(len(levels)) < rng.random()) & (levels > 1)
    return np.where(on, rng.integers(1, np.maximum(levels, 2)), 0).astype(np.int64)


def count_on(row: np.ndarray, levels: np.ndarray, asked: Collection[bytes]) -> np.ndarray | None:
    """The first row from `row` on, counting up like an odometer, that was not asked; None when all were."""
    if len(asked) >= math.prod(levels.tolist()):
        return None
    row = row.copy()
    while row.tobytes() in asked:
        for gene in reversed(range(len(row))):
            row[gene] = (row[gene] + 1) % levels[gene]
            if row[gene]:
                break
    return row
