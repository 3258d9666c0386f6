"""AutoDiffusion's evolution (arXiv:2309.10438): the steps first, then what each of them leaves out."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from search.engines.base import Engine, EngineInputs
from search.engines.nsga2 import excess
from search.engines.random import count_on, draw
from search.engines.row_queue import QueueState, RowQueue
from search.engines.state import WORST, Count, EngineState, Floats, Rows, keys_of_rows, stack_rows

PARENTS, MUTANTS, CROSSED = 0.2, 0.5, 0.3  # shares of the population: 10, 25 and 15 of 50; the rest is random
GROWTH = 5  # epochs in which the bound on what is left out reaches its end
TRIES = 50  # children of one kind before a row is counted on


class AutoDiffusionState(EngineState):
    """State of an `AutoDiffusionEngine`; `last` is the best row of the epoch before, or no row."""

    together = (("best_x", "best_excess", "best_quality"),)
    queue: QueueState
    best_x: Rows
    best_excess: Floats
    best_quality: Floats
    last: Rows
    epoch: Count
    grown: Count


class AutoDiffusionEngine(Engine):
    """One quality, the first objective, within a limit on the cost, the last one: `limit` is a share of its worst.

    Rows within the limit go first, by quality; the others follow by how far beyond they are. Each epoch the best
    fifth of all rows so far has mutants and crossovers, and some rows are random; none is asked twice.

    Stage 1 moves the genes whose names begin with `first.`, all others are 0: timesteps with the full network. It
    ends after `epochs`, or once the best row is the same after two of them. In stage 2 a step may leave out a share of
    its layers that grows to `prune` within five epochs. Where no gene is of `first`, there is stage 1 alone, of all.

    A gene of two levels without order is a switch: on, it drops its step or its layer. Every child has as many steps
    as a parent, in stage 2 one more or fewer, as it may pay for a step with layers: the project's repair, since here
    the cost is a score, not a function of genes. (The released mutation of layers compares where it should assign, and
    its crossovers lose steps that coincide: neither is reproduced.)

    Args:
        start: The genes, the generator and the first rows.
        population: Rows of an epoch, and rows that are remembered, at least 5.
        limit: The limit on the cost as a share of its worst value, above 0 and at most 1.
        epochs: How many epochs stage 1 takes at most.
        chance: The probability that a mutation changes a step.
        prune: The share of its layers that a step may leave out at the end.
        first: Prefix of the names of the genes that stage 1 decides.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        start: EngineInputs,
        population: int = 50,
        limit: float = 0.5,
        epochs: int = 5,
        chance: float = 0.1,
        prune: float = 0.1,
        first: str = "timesteps",
    ) -> None:
        if population < 5:
            raise ValueError(f"population {population} is too small; use engine.population=50, at least 5")
        if epochs < 0:
            raise ValueError(f"epochs {epochs} is too small; use engine.epochs=5, at least 0")
        for name, value in (("limit", limit), ("chance", chance), ("prune", prune)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} {value} is not a valid share; use engine.{name}=0.5, above 0 and at most 1")
        self.start, self.population, self.limit, self.epochs = start, population, limit, epochs
        self.chance, self.prune, self.levels = chance, prune, start.levels
        named = np.array([gene.name.startswith(f"{first}.") for gene in start.genes], dtype=bool)
        self.early = named if named.any() else np.ones_like(named)
        self.switch = np.array([gene.levels == 2 and not gene.ordered for gene in start.genes], dtype=bool)
        self.steps = Steps(start, self.early, self.switch)
        self.queue = RowQueue(len(self.levels), [np.zeros_like(self.levels), *start.seeds])
        self.best: list[tuple[float, float, np.ndarray]] = []  # excess, quality, row: the best come first
        self.epoch, self.grown, self.last = 0, 0, b""  # grown: epochs of stage 2
        likes = start.seeds if len(start.seeds) else np.zeros((1, len(self.levels)), dtype=np.int64)
        self._fill(self._mutant, likes, (population - len(self.queue)) // 2)
        self._fill(self._random, likes, population - len(self.queue))

    def ask(self, n: int) -> np.ndarray:
        """The rest of the epoch; the next one once that was handed out."""
        if not self.queue:
            self._breed()
        return self.queue.take(n)

    def tell(self, x: np.ndarray, y: np.ndarray) -> None:
        """The best rows are kept, as many as the population; a row with a NaN or infinite score is the last."""
        y = self.start.scores(x, y)
        y = np.where(np.isfinite(y).all(axis=1, keepdims=True), y, WORST)
        limited = self.start.worst[-1:] * self.limit if self.start.objectives > 1 else np.zeros(0)
        over = excess(y[:, -1:], limited)
        self.best += zip(over.tolist(), y[:, 0].tolist(), np.array(x, dtype=np.int64), strict=True)
        self.best = sorted(self.best, key=lambda row: row[:2])[: self.population]

    def state(self) -> dict[str, Any]:
        """The rows that wait, the best rows, and how far the epochs are."""
        genes = len(self.levels)
        return {
            "queue": self.queue.state(),
            "best_x": stack_rows((row for *_, row in self.best), genes),
            "best_excess": np.array([over for over, _, _ in self.best], dtype=float),
            "best_quality": np.array([quality for _, quality, _ in self.best], dtype=float),
            "last": stack_rows([self.last] if self.last else [], genes),
            "epoch": self.epoch,
            "grown": self.grown,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        saved = AutoDiffusionState.read(state, self.start)
        self.queue.restore(saved.queue)
        best = saved.best_excess.tolist(), saved.best_quality.tolist(), list(saved.best_x)
        self.best = list(zip(*best, strict=True))
        self.last = next(iter(keys_of_rows(saved.last)), b"")
        self.epoch, self.grown = saved.epoch, saved.grown

    @property
    def bound(self) -> float:
        """Share of a step's layers that may be left out now."""
        return self.prune * min(self.grown / GROWTH, 1.0)

    def _breed(self) -> None:
        """Queue an epoch; a single row where there are no scores or no child is new."""
        if self.best:
            self._advance()
            parents = np.array([row for *_, row in self.best[: max(2, round(PARENTS * self.population))]])
            self._fill(self._mutant, parents, round(MUTANTS * self.population))
            self._fill(self._crossed, parents, round(CROSSED * self.population))
            self._fill(self._random, parents, self.population - len(self.queue))
        if not self.queue:
            row = count_on(draw(self.start.rng, self.levels), self.levels, self.queue.asked)
            if row is not None:
                self.queue.add(row)

    def _advance(self) -> None:
        """Count epochs, and begin stage 2 when it is time."""
        self.epoch += 1
        best = self.best[0][2].tobytes()
        if not self.early.all() and (self.grown or self.epoch > self.epochs or best == self.last):
            self.grown += 1
        self.last = best

    def _fill(self, make: Callable[[np.ndarray], np.ndarray], parents: np.ndarray, count: int) -> None:
        """Queue `count` new children, or as many as are found."""
        for _ in range(TRIES * max(count, 0)):
            if count <= 0:
                break
            count -= self.queue.add(make(parents))

    def _mutant(self, parents: np.ndarray) -> np.ndarray:
        """A parent some of whose steps are drawn anew: moved, traded for a dropped one, or with other layers."""
        rng, parent = self.start.rng, self._one(parents)
        hit = rng.random(len(self.steps.groups)) < self.chance
        hit[rng.integers(len(hit))] = True
        row = parent.copy()
        for step in np.flatnonzero(hit).tolist():
            if rng.random() < 0.5:
                self.steps.trade(row, step, rng)
            else:
                self.steps.move(row, step, rng)
            self.steps.leave_out(row, step, self.bound, rng)
        return self._repaired(row, parent)

    def _crossed(self, parents: np.ndarray) -> np.ndarray:
        """Every step from either of two parents."""
        a, b = self._one(parents), self._one(parents)
        taken = self.start.rng.random(len(self.steps.groups)) < 0.5
        row = a.copy()
        for group in (g for g, t in zip(self.steps.groups, taken, strict=True) if t):
            row[group] = b[group]
        return self._repaired(row, a)

    def _random(self, parents: np.ndarray) -> np.ndarray:
        """As many steps as a parent has, anywhere, each with any layers left out."""
        rng, parent = self.start.rng, self._one(parents)
        row = np.zeros_like(parent)
        for step in range(len(self.steps.groups)):
            self.steps.move(row, step, rng)
            self.steps.leave_out(row, step, self.bound, rng)
        return self._repaired(row, parent)

    def _one(self, parents: np.ndarray) -> np.ndarray:
        parent: np.ndarray = parents[self.start.rng.integers(len(parents))]
        return parent

    def _repaired(self, row: np.ndarray, parent: np.ndarray) -> np.ndarray:
        """The row with as many steps as the parent and no more layers left out than the bound allows."""
        rng = self.start.rng
        dropped = int(parent[self.early & self.switch].sum()) + (int(rng.integers(-1, 2)) if self.grown else 0)
        return self.steps.repaired(row, dropped, self.bound, rng)


class Steps:
    """Genes by step: the switch that drops it, the values that place it, and the switches of its layers."""

    def __init__(self, start: EngineInputs, early: np.ndarray, switch: np.ndarray) -> None:
        names = [gene.group or gene.name for gene in start.genes]
        where = {name: np.flatnonzero([n == name for n in names]) for name in dict.fromkeys(names)}
        self.groups = list(where.values())
        self.levels = start.levels
        self.drops = [g[early[g] & switch[g]] for g in self.groups]
        self.values = [g[early[g] & ~switch[g]] for g in self.groups]
        self.layers = [g[~early[g]] for g in self.groups]

    def move(self, row: np.ndarray, step: int, rng: np.random.Generator) -> None:
        """Any values."""
        row[self.values[step]] = rng.integers(0, self.levels[self.values[step]])

    def trade(self, row: np.ndarray, step: int, rng: np.random.Generator) -> None:
        """The step is dropped where it was kept or the other way round, and another one instead."""
        mine = self.drops[step]
        other = self.drops[rng.integers(len(self.drops))]
        if len(mine) == len(other):
            row[mine], row[other] = row[other].copy(), row[mine].copy()

    def leave_out(self, row: np.ndarray, step: int, bound: float, rng: np.random.Generator) -> None:
        """Other layers than before, any number up to the bound."""
        layers = self.layers[step]
        row[layers] = 0
        if most := int(np.ceil(bound * len(layers))):
            out = rng.permutation(layers)[: rng.integers(0, most + 1)]
            row[out] = rng.integers(1, np.maximum(self.levels[out], 2)) % self.levels[out]

    def repaired(self, row: np.ndarray, dropped: int, bound: float, rng: np.random.Generator) -> np.ndarray:
        """`dropped` drops are on, dropped steps have no values, and no step leaves out more layers than the bound."""
        drops = np.concatenate([*self.drops, np.zeros(0, dtype=np.int64)])
        on = rng.permutation(drops[row[drops] == 1])
        off = rng.permutation(drops[row[drops] == 0])
        row[on[dropped:]] = 0
        row[off[: max(dropped - len(on), 0)]] = 1
        for drop, values, layers in zip(self.drops, self.values, self.layers, strict=True):
            if len(drop) and row[drop].all():
                row[values] = 0
            out = rng.permutation(layers[row[layers] > 0])
            row[out[int(np.ceil(bound * len(layers))) :]] = 0
        return row
