"""Random search: the engine that every other one has to beat."""

import numpy as np

from search.engines.base import Engine, Start


class RandomEngine(Engine):
    """Seeds first, then rows that differ widely in how much is off: each draws its own share of genes to set."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self.waiting = [np.asarray(row) for row in start.seeds]
        self.asked: set[bytes] = set()

    def ask(self, n: int) -> np.ndarray:
        rows: list[np.ndarray] = []
        misses = 0
        while len(rows) < n and misses < 1000:
            row = self.waiting.pop(0) if self.waiting else self._draw()
            if (key := row.tobytes()) in self.asked:
                misses += 1
                continue
            self.asked.add(key)
            rows.append(row)
        return np.array(rows, dtype=np.int64).reshape(len(rows), len(self.start.genes))

    def _draw(self) -> np.ndarray:
        rng, levels = self.start.rng, self.start.levels
        row = rng.integers(0, levels)
        row[rng.random(len(row)) > rng.random()] = 0
        return row
