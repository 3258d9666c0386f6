"""ECAD's genetic algorithm (arXiv:2506.15682): NSGA-II as published, and with a mutation that changes every child."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.operators.crossover.pntx import PointCrossover

from search.engines.base import EngineInputs
from search.engines.nsga2 import Nsga2Engine, Nsga2State
from search.engines.random import draw
from search.engines.state import Rows, Scores

MATINGS = 20  # rounds of a generation before fewer children have to do


class EcadState(Nsga2State):
    """State of an `EcadEngine`: also the scores of this generation."""

    together = (*Nsga2State.together, ("scored_x", "scored_y"))
    scored_x: Rows
    scored_y: Scores


class EcadEngine(Nsga2Engine):
    """Whole generations of `population` children, made by pymoo's own operators.

    Generation 0 is the zero row, the seeds (ECAD's are hand-made) and, where they are too few, random rows. Parents
    are picked by binary tournaments; with the chance `crossover` two of them swap stretches between `points` places
    of the row. A child is mutated with the chance `mutation`, and then `flips` of its genes change on average.

    pymoo's `BitflipMutation(prob=0.05)` in the published runs means mutation 0.05 and flips 1: about one child in
    thirty is more than a crossover. Rows asked before are not asked again, while ECAD compares with the parents alone.
    Survival, bounds and broken scores are as in `Nsga2Engine`.

    Args:
        start: The genes, the generator and the first rows.
        population: Children of a generation, and parents that survive.
        points: The number of places between which a crossover exchanges stretches, at least 1.
        crossover: The probability that two parents are crossed.
        mutation: The probability that a child is mutated.
        flips: The expected number of genes that a mutation changes.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        start: EngineInputs,
        population: int = 72,
        points: int = 4,
        crossover: float = 0.9,
        mutation: float = 0.05,
        flips: float = 1.0,
    ) -> None:
        for name, value in (("crossover", crossover), ("mutation", mutation)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} {value} is not a valid chance; use engine.{name}=0.9, from 0 to 1")
        if points < 1:
            raise ValueError(f"points {points} is too small; use engine.points=4, at least 1")
        if flips < 0:
            raise ValueError(f"flips {flips} is too small; use engine.flips=1, at least 0")
        self.crossover = PointCrossover(points, prob=crossover)
        self.mutation = Flip(start.levels, prob=mutation, prob_var=min(1.0, flips / max(len(start.genes), 1)))
        self.scored: list[tuple[np.ndarray, np.ndarray]] = []  # scores of this generation
        super().__init__(start, population)

    def ask(self, n: int) -> np.ndarray:
        """The rest of the generation; the next one once that was handed out, from all scores by then."""
        if not self.queue:
            self._breed()
        return self.queue.take(n)

    def tell(self, x: np.ndarray, y: np.ndarray) -> None:
        """Kept until the generation is over: parents and all children compete at once."""
        self.scored.append((np.array(x, dtype=np.int64), self.start.scores(x, y).copy()))

    def state(self) -> dict[str, Any]:
        """The rows that wait, the parents, and the scores of this generation."""
        none = np.zeros((0, len(self.levels)), dtype=np.int64), np.zeros((0, self.start.objectives))
        x, y = (np.concatenate(part) for part in zip(none, *self.scored, strict=True))
        return super().state() | {"scored_x": x, "scored_y": y}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        saved = EcadState.read(state, self.start)
        self._take_over(saved)
        self.scored = [(saved.scored_x, saved.scored_y)] if len(saved.scored_x) else []

    def _breed(self) -> None:
        """Queue a generation. Where crossover finds nothing new, one row with a gene or more flipped."""
        if self.scored:
            x, y = (np.concatenate(part) for part in zip(*self.scored, strict=True))
            super().tell(x, y)
            self.scored = []
        for _ in range(MATINGS if self.parents is not None else 0):
            for child in self._children():
                if child.tobytes() not in self.queue.asked and len(self.queue) < self.population:
                    self._queue(child)
        if not self.queue:
            self._queue(self._guess() if self.parents is None else self._select())

    def _children(self) -> np.ndarray:
        """The children of one generation [N, G]; some of them may have been asked for before."""
        rng, size = self.start.rng, 2 * -(-self.population // 2)
        parents = Population.new(X=np.array([self._select() for _ in range(size)]))
        pairs = np.arange(size).reshape(-1, 2)
        genes = _Genes(len(self.levels))
        crossed = self.crossover.do(genes, parents, parents=pairs, random_state=rng)
        children: np.ndarray = self.mutation.do(genes, crossed, random_state=rng).get("X").astype(np.int64)
        return children

    def _guess(self) -> np.ndarray:
        """What fills generation 0."""
        return draw(self.start.rng, self.levels)

    def _vary(self, row: np.ndarray) -> np.ndarray:
        """A copy with one gene flipped: what `_queue` does to rows that were asked before."""
        rng, row = self.start.rng, row.copy()
        if len(free := np.flatnonzero(self.levels > 1)):
            gene = rng.choice(free)
            row[gene] = (row[gene] + rng.integers(1, self.levels[gene])) % self.levels[gene]
        return row


class Flip(Mutation):
    """Bit flip for genes of any number of levels: to one of the other levels.

    As in pymoo, `prob` is the chance of a row to be mutated, `prob_var` that of each of its genes.
    """

    def __init__(self, levels: np.ndarray, prob: float, prob_var: float) -> None:
        super().__init__(prob=prob, prob_var=prob_var)
        self.levels = levels

    def _do(self, problem: object, X: np.ndarray, random_state: np.random.Generator, **_: object) -> np.ndarray:
        flipped = random_state.random(X.shape) < self.get_prob_var(problem, size=(len(X), 1))
        away = random_state.integers(1, np.maximum(self.levels, 2), size=X.shape)
        return np.where(flipped, (X + away) % self.levels, X)


class _Genes:
    """What pymoo's operators ask of a problem."""

    def __init__(self, n_var: int) -> None:
        self.n_var = n_var
