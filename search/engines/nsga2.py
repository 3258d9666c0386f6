"""NSGA-II (Deb et al. 2002) through pymoo, with moves that know which genes belong together."""


import numpy as np
from pymoo.algorithms.moo.nsga2 import RankAndCrowding
from pymoo.core.population import Population

from search.engines.base import Engine, Start


class Nsga2Engine(Engine):
    """Generation 0 is the zero row and all seeds; then `population` parents survive by rank and crowding.

    Every child is changed (in ECAD's runs pymoo's `BitflipMutation(prob=0.05)` left 95 % of the children as
    they were: there `prob` is the chance that an individual is mutated at all). Children come from binary
    tournaments, crossover between whole gene groups (all genes of a step), and one or two of the moves below.
    Survival is pymoo's; rows that were asked before are never asked again.
    """

    def __init__(self, start: Start, population: int = 24) -> None:
        if population < 2:
            raise ValueError(f"population {population} is too small; use engine.population=24, at least 2")
        self.start, self.population = start, population
        self.levels = start.levels
        self.ordered = np.array([gene.ordered for gene in start.genes])
        self.groups = _groups(start)
        self.asked: set[bytes] = set()
        self.waiting: list[np.ndarray] = []
        self.parents: tuple[np.ndarray, np.ndarray] | None = None  # x [P, G], y [P, M], best first
        for row in [np.zeros(len(self.levels), dtype=np.int64), *start.seeds]:
            self._queue(np.asarray(row, dtype=np.int64))
        while len(self.waiting) < population and self._queue(self._vary(self._any_seed())):
            pass

    def ask(self, n: int) -> np.ndarray:
        """The rest of generation 0, then children of the parents known by now."""
        while len(self.waiting) < n and self.parents is not None and self._queue(self._child()):
            pass
        if not self.waiting and self.parents is None:
            self._queue(self._vary(self._any_seed()))
        rows, self.waiting = self.waiting[:n], self.waiting[n:]
        return np.array(rows, dtype=np.int64).reshape(len(rows), len(self.levels))

    def tell(self, x: np.ndarray, y: np.ndarray) -> None:
        """Parents and newcomers compete for the places; infinite or NaN scores lose."""
        y = np.where(np.isfinite(y), y, np.finfo(float).max / 1e6)
        if self.parents is not None:
            x, y = np.concatenate([self.parents[0], x]), np.concatenate([self.parents[1], y])
        pool = Population.new(X=x, F=y)
        kept = RankAndCrowding().do(_Problem(), pool, n_survive=min(self.population, len(x)))
        self.parents = np.array([k.X for k in kept], dtype=np.int64), np.array([k.F for k in kept])
        self.rank = np.array([k.get("rank") for k in kept], dtype=float)
        self.crowding = np.array([k.get("crowding") for k in kept], dtype=float)

    def _queue(self, row: np.ndarray) -> bool:
        """Queue a new row; of one asked before, a variation is queued. False when none could be found."""
        for _ in range(200):
            if (key := row.tobytes()) not in self.asked:
                self.asked.add(key)
                self.waiting.append(row)
                return True
            row = self._vary(row)
        return False

    def _any_seed(self) -> np.ndarray:
        seeds = self.start.seeds
        if not len(seeds):
            return np.zeros(len(self.levels), dtype=np.int64)
        return np.array(seeds[self.start.rng.integers(len(seeds))], dtype=np.int64)

    def _child(self) -> np.ndarray:
        child = self._cross(self._select(), self._select())
        for _ in range(1 + int(self.start.rng.integers(2))):
            child = self._vary(child)
        return child

    def _select(self) -> np.ndarray:
        """Binary tournament on rank, then crowding."""
        assert self.parents is not None
        a, b = self.start.rng.integers(len(self.parents[0]), size=2)
        better = (self.rank[a], -self.crowding[a]) <= (self.rank[b], -self.crowding[b])
        return self.parents[0][a if better else b].copy()

    def _cross(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Half of the time each group comes from either parent, half of the time one stretch of groups from b."""
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
        """One move; what it can do depends on chance alone, so every row can be reached."""
        rng = self.start.rng
        row = row.copy()
        move = rng.choice(("reset", "nudge", "copy", "swap", "off", "shift"), p=(0.25, 0.3, 0.15, 0.1, 0.1, 0.1))
        i = int(rng.integers(len(self.groups)))
        j = min(max(i + int(rng.choice((-1, 1))), 0), len(self.groups) - 1)
        alike = len(self.groups[i]) == len(self.groups[j])
        if move == "nudge" and self.ordered.any():
            hit = self.ordered & (rng.random(len(row)) < rng.integers(1, 6) / len(row))
            row = row + hit * rng.choice((-2, -1, 1, 2), size=len(row))
        elif move == "copy" and alike:
            row[self.groups[j]] = row[self.groups[i]]
        elif move == "swap" and alike:
            row[self.groups[i]], row[self.groups[j]] = row[self.groups[j]].copy(), row[self.groups[i]].copy()
        elif move == "off":
            row[self.groups[i]] = 0
        elif move == "shift" and alike and i != j:
            low, high = sorted((i, int(rng.integers(len(self.groups)))))
            block = np.array([row[g] for g in self.groups[low : high + 1] if len(g) == len(self.groups[low])])
            for group, values in zip(self.groups[low : high + 1], np.roll(block, 1, axis=0), strict=False):
                if len(group) == len(values):
                    row[group] = values
        else:
            hit = rng.random(len(row)) < rng.integers(1, 6) / len(row)
            row = np.where(hit, rng.integers(0, self.levels), row)
        return np.clip(row, 0, self.levels - 1).astype(np.int64)


def _groups(start: Start) -> list[np.ndarray]:
    names = list(dict.fromkeys(gene.group or gene.name for gene in start.genes))
    place = {name: i for i, name in enumerate(names)}
    found: list[list[int]] = [[] for _ in names]
    for index, gene in enumerate(start.genes):
        found[place[gene.group or gene.name]].append(index)
    return [np.array(group) for group in found]


class _Problem:
    """What pymoo's survival asks of a problem."""

    n_constr = 0

    def has_constraints(self) -> bool:
        return False
