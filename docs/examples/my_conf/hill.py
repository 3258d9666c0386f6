"""Hill climbing on the front: change one gene of a row that nothing dominates."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from search.engines.base import Engine, EngineInputs
from search.engines.random import RandomEngine, count_on
from search.engines.state import EngineState, Rows, Scores
from search.pareto.domination import non_dominated

TRIES = 20  # changes that are tried before a row is found by counting


class HillState(EngineState):
    """What a search that is resumed needs of a `HillEngine`."""

    together = (("x", "y"),)  # of equal length
    random: dict[str, Any]
    x: Rows
    y: Scores


class HillEngine(Engine):
    """Seeds first. Then each row is a row of the front with one gene drawn anew; no row is asked twice."""

    def __init__(self, start: EngineInputs) -> None:
        self.start, self.random = start, RandomEngine(start)
        self.x = np.zeros((0, len(start.genes)), dtype=np.int64)  # rows [N, G] with scores
        self.y = np.zeros((0, start.objectives))  # [N, M], all minimised

    def ask(self, n: int) -> np.ndarray:
        """The next rows [n, G]; fewer where the space is exhausted."""
        parents = self.x[non_dominated(self.y)] if len(self.y) else self.x
        if len(self.random.waiting) or not len(parents):
            return self.random.ask(n)
        rows = [row for _ in range(n) if (row := self._neighbour(parents)) is not None]
        return np.array(rows, dtype=np.int64).reshape(len(rows), len(self.start.genes))

    def tell(self, x: np.ndarray, y: np.ndarray) -> None:
        """Scores y [N, M] of rows x [N, G]; a row with a score that is not finite is no parent."""
        y = self.start.scores(x, y)
        good = np.isfinite(y).all(axis=1)
        self.x, self.y = np.concatenate([self.x, x[good]]), np.concatenate([self.y, y[good]])

    def state(self) -> dict[str, Any]:
        """Plain data: numbers, texts, arrays, and lists and dictionaries of these."""
        return {"random": self.random.state(), "x": self.x, "y": self.y}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned; ValueError where it does not fit the genes."""
        saved = HillState.read(state, self.start)
        self.random.restore(saved.random)
        self.x, self.y = saved.x, saved.y

    def _neighbour(self, parents: np.ndarray) -> np.ndarray | None:
        rng, levels, asked = self.start.rng, self.start.levels, self.random.asked
        for _ in range(TRIES):
            row = parents[rng.integers(len(parents))].copy()
            gene = rng.integers(len(row))
            row[gene] = rng.integers(levels[gene])
            if row.tobytes() not in asked:
                break
        if (row := count_on(row, levels, asked)) is not None:
            asked.add(row.tobytes())
        return row
