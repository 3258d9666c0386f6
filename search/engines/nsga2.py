"""NSGA-II (Deb et al. 2002) through pymoo, with moves that know which genes belong together."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pymoo.core.population import Population
from pymoo.core.survival import Survival
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

from search.engines.base import Engine, EngineInputs
from search.engines.random import count_on, draw
from search.engines.row_queue import QueueState, RowQueue
from search.engines.state import WORST, EngineState, Floats, Rows, Scores

TRIES = 50  # moves on top of each other that look for a row that was not asked before
MOVES = {"reset": 0.25, "nudge": 0.3, "copy": 0.15, "swap": 0.1, "off": 0.1, "shift": 0.1}


class Nsga2State(EngineState):
    """State of an `Nsga2Engine`; no parents before the first scores."""

    together: ClassVar[tuple[tuple[str, ...], ...]] = (("x", "y", "excess", "rank", "crowding"),)
    queue: QueueState
    x: Rows
    y: Scores
    excess: Floats
    rank: Floats
    crowding: Floats


class Nsga2Engine(Engine):
    """Generation 0 is the zero row and all seeds; then `population` parents survive by rank and crowding.

    Every child goes through one or two moves (`_vary`; in ECAD's runs pymoo's `BitflipMutation(prob=0.05)` left
    95 % of the children as they were: there `prob` is the chance that an individual is mutated at all). A move
    may change nothing, so some children are crossovers alone. Parents are picked by binary tournaments, crossover
    is between whole gene groups (all genes of a step), survival is pymoo's; a row is never asked twice. Two or
    more objectives. A row beyond `EngineInputs.worst` loses against every row within (Deb et al. 2002, section VI).

    Children are made when asked for, from the best rows by then: any n and any order of `tell` is allowed.

    Args:
        start: The genes, the generator and the first rows.
        population: The number of parents, at least 2.

    Raises:
        ValueError: The population is too small.

    Example:
        >>> import numpy as np
        >>> from search.engines.base import EngineInputs
        >>> from search.engines.nsga2 import Nsga2Engine
        >>> from search.spaces.gene import Gene
        >>> genes = [Gene(f"skip@{t}", 2, step=t) for t in range(8)]
        >>> engine = Nsga2Engine(EngineInputs(genes, objectives=2, rng=np.random.default_rng(0)), population=8)
        >>> for _ in range(4):  # trade the number of ones off against their places
        ...     x = engine.ask(8)
        ...     engine.tell(x, np.stack([x.sum(axis=1), (x == 0) @ np.arange(8)], axis=1))
        >>> engine.parents[0].shape
        (8, 8)
    """

    def __init__(self, start: EngineInputs, population: int = 24) -> None:
        if population < 2:
            raise ValueError(f"population {population} is too small; use engine.population=24, at least 2")
        self.start, self.population = start, population
        self.levels = start.levels
        self.ordered = np.array([gene.ordered for gene in start.genes], dtype=bool)
        self.groups = _groups(start)
        self.shapes = [tuple(self.levels[group].tolist()) for group in self.groups]
        self.queue = RowQueue(len(self.levels))
        self.parents: tuple[np.ndarray, np.ndarray] | None = None  # x [P, G], y [P, M], best rank first
        self.excess, self.rank, self.crowding = np.zeros(0), np.zeros(0), np.zeros(0)  # [P] each
        for row in [np.zeros_like(self.levels), *start.seeds]:
            self.queue.add(row)
        self._fill(population)

    def ask(self, n: int) -> np.ndarray:
        """The rest of generation 0, then children of the parents known by now."""
        if self.parents is not None or not self.queue:
            self._fill(n)
        return self.queue.take(n)

    def tell(self, x: np.ndarray, y: np.ndarray) -> None:
        """Parents and newcomers compete for the places; a row with a NaN or infinite score loses."""
        y = self.start.scores(x, y)
        if not len(x):
            return
        # The whole row: a diverged schedule with the lowest cost of all would stay on the front for ever.
        y = np.where(np.isfinite(y).all(axis=1, keepdims=True), y, WORST)
        if self.parents is not None:
            x, y = np.concatenate([self.parents[0], x]), np.concatenate([self.parents[1], y])
        over = excess(y, self.start.worst)
        kept = self._survive(y, over)
        self.parents, self.excess = (np.asarray(x)[kept].astype(np.int64), y[kept]), over[kept]

    def state(self) -> dict[str, Any]:
        """The rows that wait, and the parents."""
        x, y = self.parents or (np.zeros((0, len(self.levels)), dtype=np.int64), np.zeros((0, self.start.objectives)))
        attributes = {"excess": self.excess, "rank": self.rank, "crowding": self.crowding}
        return {"queue": self.queue.state(), "x": x, "y": y, **attributes}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self._take_over(Nsga2State.read(state, self.start))

    def _take_over(self, saved: Nsga2State) -> None:
        self.queue.restore(saved.queue)
        self.parents = (saved.x, saved.y) if len(saved.x) else None
        self.excess, self.rank, self.crowding = saved.excess, saved.rank, saved.crowding

    def _survive(self, y: np.ndarray, over: np.ndarray) -> np.ndarray:
        """Indices [P] of the rows that stay, and for the tournaments their rank and crowding."""
        kept, self.rank, self.crowding = survivors(self, RankAndCrowding(), y, over, "rank", "crowding")
        return kept.astype(int)

    def _fill(self, n: int) -> None:
        while len(self.queue) < n and self._queue(self._guess() if self.parents is None else self._child()):
            pass

    def _queue(self, row: np.ndarray) -> bool:
        """Queue a row not asked before, this one or one that moves lead to; False when none is left."""
        for _ in range(TRIES):
            if row.tobytes() not in self.queue.asked:
                break
            row = self._vary(row)
        unasked = count_on(row, self.levels, self.queue.asked)
        return unasked is not None and self.queue.add(unasked)

    def _guess(self) -> np.ndarray:
        """What fills generation 0: a seed after a move, or a random row."""
        rng, seeds = self.start.rng, self.start.seeds
        if len(seeds) and rng.random() < 0.5:
            return self._vary(seeds[rng.integers(len(seeds))])
        return draw(rng, self.levels)

    def _child(self) -> np.ndarray:
        child = self._cross(self._select(), self._select())
        for _ in range(1 + int(self.start.rng.integers(2))):
            child = self._vary(child)
        return child

    def _select(self) -> np.ndarray:
        """Binary tournament: what is within the bounds, then what `_better` says."""
        assert self.parents is not None
        a, b = self.start.rng.integers(len(self.parents[0]), size=2)
        better = self._better(a, b) if self.excess[a] == self.excess[b] else self.excess[a] < self.excess[b]
        parent: np.ndarray = self.parents[0][a if better else b]
        return parent

    def _better(self, a: int, b: int) -> bool:
        """Whether parent a wins against b: by rank, then crowding."""
        return bool((self.rank[a], -self.crowding[a]) <= (self.rank[b], -self.crowding[b]))

    def _cross(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Half of the time each group comes from either parent, else one stretch of groups comes from b."""
        rng, count = self.start.rng, len(self.groups)
        if rng.random() < 0.5:
            taken = rng.random(count) < 0.5
        else:
            low, high = np.sort(rng.integers(0, count + 1, size=2))
            taken = (np.arange(count) >= low) & (np.arange(count) < high)
        child = a.copy()
        for group in (g for g, t in zip(self.groups, taken, strict=True) if t):
            child[group] = b[group]
        return child

    def _vary(self, row: np.ndarray) -> np.ndarray:
        """A copy after one move, drawn at random. It may change nothing: `_queue` then moves on.

        reset: each gene to a random level, with a chance of 1/G to 5/G; nudge: the same with ordered genes, by at
        most 2 levels, or 1/40 of the levels where that is more; copy: a group onto its neighbour; swap: two
        groups; off: a group to 0; shift: a run of groups by one. Groups trade places only with groups of the
        same shape (number of levels of each gene).
        """
        rng, row = self.start.rng, row.copy()
        if not len(row):
            return row
        move = str(rng.choice(list(MOVES), p=list(MOVES.values())))
        chance = rng.integers(1, 6) / len(row)
        i = int(rng.integers(len(self.groups)))
        alike = [self.groups[k] for k, shape in enumerate(self.shapes) if shape == self.shapes[i]]
        here = sum(shape == self.shapes[i] for shape in self.shapes[:i])  # alike[here] is group i
        there = int(rng.integers(len(alike)))
        if move == "nudge" and self.ordered.any():
            hit = self.ordered & (rng.random(len(row)) < chance)
            by, reach = rng.choice((-2, -1, 1, 2), size=len(row)), self.levels // 40
            if (reach > 2).any():
                by = np.where(reach > 2, np.sign(by) * rng.integers(1, np.maximum(reach, 1) + 1), by)
            nudged: np.ndarray = np.clip(row + hit * by, 0, self.levels - 1)
            return nudged
        if move == "copy":
            neighbour = min(max(here + int(rng.choice((-1, 1))), 0), len(alike) - 1)
            row[alike[neighbour]] = row[alike[here]]
        elif move == "swap":
            row[alike[here]], row[alike[there]] = row[alike[there]].copy(), row[alike[here]].copy()
        elif move == "off":
            row[self.groups[i]] = 0
        elif move == "shift":
            run = np.array(alike[min(here, there) : max(here, there) + 1])  # [groups, genes]
            row[run] = np.roll(row[run], int(rng.choice((-1, 1))), axis=0)
        else:
            hit = rng.random(len(row)) < chance
            row = np.where(hit, rng.integers(0, self.levels), row)
        return row


def _groups(start: EngineInputs) -> list[np.ndarray]:
    """Gene indices of each group, in the order of first appearance; a gene without a group is one alone."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, gene in enumerate(start.genes):
        groups.setdefault((gene.group, "" if gene.group else gene.name), []).append(index)
    return [np.array(group) for group in groups.values()]


def excess(y: np.ndarray, worst: np.ndarray) -> np.ndarray:
    """How far rows of y [N, M] are beyond the bounds `worst` [M], or []: sum of the shares of the bound, 0 within.

    A row with a NaN, infinite or `WORST` score is farther out than any other.
    """
    broken = ~(np.abs(y) < WORST).all(axis=1)
    if not len(worst):
        return np.where(broken, WORST, 0.0)
    worst = np.asarray(worst, dtype=float)
    scale = np.where(worst == 0, 1.0, np.abs(worst))  # a bound of 0 has no share: the excess itself
    beyond = np.where(broken[:, None], 0.0, y) - worst
    return np.where(broken, WORST, np.maximum(beyond / scale, 0).sum(axis=1))


def survivors(
    engine: Nsga2Engine, survival: Survival, y: np.ndarray, over: np.ndarray, *names: str
) -> list[np.ndarray]:
    """Indices [P] of the rows that pymoo lets survive, and its attributes of them under `names`, [P] each.

    Rows within the bounds (over == 0) go first, the others follow by `over` and have 0 for every name.
    """
    kept = survival.do(
        _Problem(),
        Population.new(index=np.arange(len(y)), F=y, G=over[:, None]),
        n_survive=engine.population,
        random_state=engine.start.rng,  # without it ties are broken by an unseeded generator
    )
    within = over[[k.get("index") for k in kept]] == 0
    attributes = [[k.get(name) if ok else 0 for k, ok in zip(kept, within, strict=True)] for name in names]
    return [np.array(values, dtype=float) for values in ([k.get("index") for k in kept], *attributes)]


class _Problem:
    """What pymoo's survival asks of a problem."""

    n_constr = 1

    def has_constraints(self) -> bool:
        return True
