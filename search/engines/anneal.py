"""Simulated annealing, then hill climbing, with moves that keep the budget (BudCache, ICML 2026).

BudCache searches one mask with a fixed number of computed steps. Here several chains, each with other weights of the
objectives, share their rows, so that one search gives a front.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from search.engines.base import Engine, EngineInputs
from search.engines.nsga2 import excess
from search.engines.random import count_on, draw
from search.engines.state import WORST, Bounded, Count, EngineState, Flags, Integers, Rows, keys_of_rows, stack_rows
from search.pareto.domination import non_dominated

TRIES = 50  # moves on top of each other that look for a row that was not asked before
NEAR = 3  # places in the row of genes alike
NEAR_SHARE = 0.7  # of the relocations, BudCache's number
OFF_BUDGET = 0.2  # share of the moves that change the budget: chains have to come to their part of the front
SPREAD = 3  # random rows per chain at first; with 1 some searches of 120 rows never reached the ends of the front
MOVES = {"relocate": 0.6, "shift": 0.15, "trade": 0.25}
ALONG = 0.05  # share of the sum in the augmented Tchebycheff scalar: of rows with equal maximum the better wins


class AnnealState(EngineState):
    """State of an `AnnealEngine` of C chains; a chain that is not `placed` has a row of zeros in `x`."""

    together = (("weights", "placed", "x", "y"), ("front_x", "front_y"), ("open_x", "open_chains"))
    weights: Bounded
    placed: Flags
    x: Rows
    y: Bounded
    front_x: Rows
    front_y: Bounded
    open_x: Rows
    open_chains: Integers
    asked: Rows
    first: Rows
    count: Count
    turn: Count
    spread: Count


class AnnealEngine(Engine):
    """Several annealing chains, each with weights of the objectives, which propose rows in turn.

    A chain stands on a row and proposes a neighbour. Genes are of one kind if their names up to "@" and their numbers
    of levels are equal; the moves are

    - relocate: exchange the levels of two genes of one kind, mostly near ones,
    - shift: rotate a run of genes of one kind by one place,
    - trade: one level more for one gene, one level less for another gene of its kind,
    - in one of five moves: any other level for one gene, which changes the budget.

    A worse row is accepted with probability exp(-d / T), where d is the loss as a share of the front's extent. T falls
    geometrically with every scored row. After `steps` rows each chain returns to the best row for its weights, and only
    better rows are accepted. A row that is better for another chain than that chain's row replaces it too. A row beyond
    `EngineInputs.worst` loses against every row within. Two or more objectives.

    Args:
        start: The genes, the generator and the first rows.
        chains: The number of chains, at least 2.
        start_temperature: T at the first row.
        end_temperature: T after `steps` rows, above 0.
        steps: The number of scored rows over which T falls.

    Raises:
        ValueError: There are fewer than 2 chains or 1 step, or the temperatures do not fall to above 0.
    """

    def __init__(
        self,
        start: EngineInputs,
        chains: int = 8,
        start_temperature: float = 0.05,
        end_temperature: float = 0.001,
        steps: int = 200,
    ) -> None:
        if chains < 2:
            raise ValueError(f"{chains} chains cannot cover a front; use engine.chains=8, at least 2")
        if not 0 < end_temperature <= start_temperature < np.inf:
            raise ValueError(
                f"temperatures fall from {start_temperature} to {end_temperature}; "
                "use engine.start_temperature=0.05 engine.end_temperature=0.001, both above 0"
            )
        if steps < 1:
            raise ValueError(f"{steps} steps of annealing are too few; use engine.steps=200, at least 1")
        self.start, self.levels = start, start.levels
        self.temperatures, self.steps = (start_temperature, end_temperature), steps
        self.kinds = _kinds(start)
        self.kind_of = {int(gene): kind for kind in self.kinds for gene in kind}
        self.steppable = np.array([gene.ordered and gene.levels > 2 for gene in start.genes], dtype=bool)
        self.weights = _weights(chains, start.objectives, start.rng)  # [C, M]
        self.x: list[np.ndarray | None] = [None] * chains  # where each chain stands
        self.y = np.full((chains, start.objectives), WORST)
        self.front_x = np.zeros((0, len(self.levels)), dtype=np.int64)  # non-dominated of all scored rows
        self.front_y = np.zeros((0, start.objectives))
        self.count = 0  # rows with scores
        self.turn = 0  # the chain that proposes next
        self.asked: set[bytes] = set()
        self.chain_of: dict[bytes, int] = {}  # rows that are open
        self.first: list[np.ndarray] = [np.zeros_like(self.levels), *start.seeds]
        self.spread = SPREAD * chains  # random rows, so that chains have several budgets to begin with

    @property
    def temperature(self) -> float:
        """The temperature T for the next row; 0 once the annealing is over."""
        first, last = self.temperatures
        return first * (last / first) ** (self.count / self.steps) if self.count < self.steps else 0.0

    def ask(self, n: int) -> np.ndarray:
        """The zero row and all seeds, some random rows, then proposals of the chains by turns."""
        rows: list[np.ndarray] = []
        while len(rows) < n and (row := self._next()) is not None:
            self.asked.add(row.tobytes())
            self.chain_of[row.tobytes()] = self.turn
            self.turn = (self.turn + 1) % len(self.weights)
            rows.append(row)
        return np.array(rows, dtype=np.int64).reshape(len(rows), len(self.levels))

    def tell(self, x: np.ndarray, y: np.ndarray) -> None:
        """The chain that proposed a row accepts or rejects it; every other chain takes it over if it is better."""
        y = self.start.scores(x, y)
        y = np.where((np.abs(y) < WORST).all(axis=1, keepdims=True), y, WORST)
        for row, scores in zip(np.array(x, dtype=np.int64), y, strict=True):
            self._update_front(row, scores)
            self._offer(row, scores, self.chain_of.pop(row.tobytes(), None))
            self.count += 1
            if self.count == self.steps:
                self._back_to_best()

    def state(self) -> dict[str, Any]:
        """Where the chains stand, the front, and the rows that were asked for."""
        genes = len(self.levels)
        return {
            "weights": self.weights,
            "placed": np.array([row is not None for row in self.x], dtype=bool),
            "x": stack_rows((np.zeros_like(self.levels) if row is None else row for row in self.x), genes),
            "y": self.y,
            "front_x": self.front_x,
            "front_y": self.front_y,
            "open_x": stack_rows(self.chain_of, genes),
            "open_chains": np.array(list(self.chain_of.values()), dtype=np.int64),
            "asked": stack_rows(sorted(self.asked), genes),
            "first": stack_rows(self.first, genes),
            "count": self.count,
            "turn": self.turn,
            "spread": self.spread,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        saved, chains = AnnealState.read(state, self.start), len(self.weights)
        if len(saved.weights) != chains or saved.turn >= chains or not np.isin(saved.open_chains, range(chains)).all():
            raise ValueError(f"weights, turn, open_chains: this search has {chains} chains")
        self.weights, self.y = saved.weights, saved.y
        self.x = [row if placed else None for row, placed in zip(saved.x, saved.placed, strict=True)]
        self.front_x, self.front_y = saved.front_x, saved.front_y
        self.chain_of = dict(zip(keys_of_rows(saved.open_x), saved.open_chains.tolist(), strict=True))
        self.asked, self.first = set(keys_of_rows(saved.asked)), list(saved.first)
        self.count, self.turn, self.spread = saved.count, saved.turn, saved.spread

    def _update_front(self, row: np.ndarray, scores: np.ndarray) -> None:
        """Update the front; rows beyond the bounds are on it only while no row is within."""
        x, y = np.concatenate([self.front_x, row[None]]), np.concatenate([self.front_y, scores[None]])
        over = excess(y, self.start.worst)
        kept = over == over.min()
        kept[kept] = non_dominated(y[kept])
        self.front_x, self.front_y = x[kept], y[kept]

    def _offer(self, row: np.ndarray, scores: np.ndarray, proposer: int | None) -> None:
        new, old = self._scalar(scores[None])[:, 0], np.diagonal(self._scalar(self.y))
        for chain, loss in enumerate(new - old):
            accepted = self.x[chain] is None or loss < 0
            if chain == proposer and not accepted:
                heat = self.temperature
                with np.errstate(over="ignore"):  # a row of WORST is never accepted
                    accepted = loss == 0 or (heat > 0 and self.start.rng.random() < np.exp(-loss / heat))
            if accepted:
                self.x[chain], self.y[chain] = row, scores

    def _back_to_best(self) -> None:
        best = self._scalar(self.front_y).argmin(axis=1)
        self.x, self.y = [self.front_x[i] for i in best], self.front_y[best]

    def _scalar(self, y: np.ndarray) -> np.ndarray:
        """Augmented Tchebycheff scalars [C, N] of scores y [N, M] for each chain: lower is better, 0 is ideal.

        Scores are scaled to the extent of the front; a row beyond the bounds has more than any row within.
        """
        low, high = self.front_y.min(axis=0), self.front_y.max(axis=0)
        with np.errstate(over="ignore"):
            z = np.minimum((y - low) / np.where(high > low, high - low, 1.0), 1e6)
        weighted = self.weights[:, None] * z  # [C, N, M]
        over = excess(y, self.start.worst)
        # A bound counts more than any distance within it; broken rows come last.
        distance: np.ndarray = (
            weighted.max(axis=2) + ALONG * weighted.sum(axis=2) + np.where(over > 0, 1e6 * (1 + over), 0.0)
        )
        return distance

    def _next(self) -> np.ndarray | None:
        while self.first:
            if (row := self.first.pop(0)).tobytes() not in self.asked:
                return row
        here = self.x[self.turn]
        if here is None or self.spread:
            self.spread = max(self.spread - 1, 0)
            row = draw(self.start.rng, self.levels)
        else:
            row = self._move(here)
        for _ in range(TRIES):
            if row.tobytes() not in self.asked:
                return row
            row = self._move(row)
        return count_on(row, self.levels, self.asked)

    def _move(self, row: np.ndarray) -> np.ndarray:
        """A copy after one move; 80 % of the moves keep the budget, if one that does is possible."""
        rng, row = self.start.rng, row.copy()
        if rng.random() >= OFF_BUDGET:
            name = str(rng.choice(list(MOVES), p=list(MOVES.values())))
            if {"relocate": self._relocate, "shift": self._shift, "trade": self._trade}[name](row):
                return row
        open_ = np.flatnonzero(self.levels > 1)
        if len(open_):
            gene = int(rng.choice(open_))
            if self.steppable[gene] and rng.random() < 0.5:
                up = row[gene] == 0 or (row[gene] < self.levels[gene] - 1 and rng.random() < 0.5)
                row[gene] += 1 if up else -1
            else:
                row[gene] = (row[gene] + rng.integers(1, self.levels[gene])) % self.levels[gene]
        return row

    def _relocate(self, row: np.ndarray) -> bool:
        """Swap two genes of a kind whose values differ; near ones in 70 % of the cases and when climbing."""
        rng = self.start.rng
        mixed = [kind for kind in self.kinds if (row[kind] != row[kind[0]]).any()]
        if not mixed:
            return False
        kind = self.kind_of[int(rng.choice(np.concatenate(mixed)))]  # by the number of its genes
        place = int(rng.integers(len(kind)))
        others = np.flatnonzero(row[kind] != row[kind[place]])
        near = others[np.abs(others - place) <= NEAR]
        if len(near) and (rng.random() < NEAR_SHARE or not self.temperature):
            others = near
        a, b = kind[place], kind[rng.choice(others)]
        row[a], row[b] = row[b], row[a]
        return True

    def _shift(self, row: np.ndarray) -> bool:
        """Rotate a run of genes of one kind by one place."""
        rng, long = self.start.rng, [kind for kind in self.kinds if len(kind) > 1]
        if not long:
            return False
        kind = long[int(rng.integers(len(long)))]
        low, high = np.sort(rng.choice(len(kind), size=2, replace=False))
        before = row.copy()
        row[kind[low : high + 1]] = np.roll(row[kind[low : high + 1]], int(rng.choice((-1, 1))))
        return bool((row != before).any())

    def _trade(self, row: np.ndarray) -> bool:
        """One level more for a gene, one less for another of its kind; both are ordered, of three levels or more."""
        rng = self.start.rng
        up = np.flatnonzero(self.steppable & (row < self.levels - 1))
        if not len(up):
            return False
        more = int(rng.choice(up))
        alike = self.kind_of[more]
        down = alike[(row[alike] > 0) & (alike != more)]
        if not len(down):
            return False
        row[more] += 1
        row[rng.choice(down)] -= 1
        return True


def _kinds(start: EngineInputs) -> list[np.ndarray]:
    """Indices of the genes of each kind, in their order; genes of one level are in none."""
    found: dict[tuple[str, int, bool], list[int]] = {}
    for index, gene in enumerate(start.genes):
        if gene.levels > 1:
            found.setdefault((gene.name.split("@")[0], gene.levels, gene.ordered), []).append(index)
    return [np.array(kind) for kind in found.values()]


def _weights(chains: int, objectives: int, rng: np.random.Generator) -> np.ndarray:
    """Weights [C, M] that sum to 1, none 0: even steps for two objectives, else random after the corners."""
    if objectives == 2:
        first = np.linspace(0.02, 0.98, chains)
        return np.stack([first, 1 - first], axis=1)
    drawn = np.concatenate([np.eye(objectives), rng.dirichlet(np.ones(objectives), size=chains)])[:chains]
    return 0.94 * drawn + 0.06 / objectives
