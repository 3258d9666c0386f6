"""Allocation under a budget when errors add up: one level per gene, exact for every budget at once.

The multiple-choice knapsack by dynamic programming over integer costs; and a local search on the norm of the
summed error vectors, which ranks joint errors where a sum of scalars does not (errors of different layers are
far from orthogonal).
"""

from collections.abc import Sequence

import numpy as np

from search.exact.rows import MOST_OF_A_FRONT, spread_indices, unique_rows

DAMPINGS = (0.5, 1.0)  # which is better depends on how large the errors are: rows of both are evaluated
Point = tuple[float, float, np.ndarray]  # cost, error, choice [G]
MOST_PAIRED = 150  # moves on either side of an exchange: the whole neighbourhood up to about 60 genes x 5 levels
MOST_MOVES = 200  # a local search that long has long been within rounding of its end


def knapsack_front(errors: Sequence[np.ndarray], costs: Sequence[np.ndarray], resolution: int = 20_000) -> list[Point]:
    """The least sum of errors for every budget that can be reached: the Pareto front, cheapest first.

    Whole numbers are counted in units of their greatest common divisor, and the front is exact where all choices span
    at most `resolution` units. Other costs are rounded to a grid of `resolution` units: a point can then spend up to
    G / 2 units more than needed; cost and error of each point are always the true sums. O(G L resolution) time,
    2 G resolution bytes.

    Args:
        errors: Of each gene g the errors [levels of g], from 0 up; infinity: this level is never chosen.
        costs: Of each gene g the costs [levels of g], of any sign.
        resolution: How many units of cost are distinguished.

    Returns:
        (cost, error, levels [G]) of each point.

    Raises:
        ValueError: Errors and costs do not match, an error is negative, or a cost is not finite.

    Example:
        >>> import numpy as np
        >>> from search.exact.knapsack import knapsack_front
        >>> errors, costs = [np.array([0, 1]), np.array([0, 3])], [np.array([0, -2]), np.array([0, -4])]
        >>> [(cost, error, levels.tolist()) for cost, error, levels in knapsack_front(errors, costs)]
        [(-6.0, 4.0, [1, 1]), (-4.0, 3.0, [0, 1]), (-2.0, 1.0, [1, 0]), (0.0, 0.0, [0, 0])]
    """
    errors, costs = _tables(errors, costs)
    units, width = _units(costs, resolution)
    best = np.zeros(1)  # best[u]: least error of the genes so far at a cost of exactly u units
    taken = np.zeros((len(errors), width + 1), dtype=np.int16)  # the level it takes of the last of them
    for g, (error, unit) in enumerate(zip(errors, units, strict=True)):
        levels = _useful(error, unit)
        reach = len(best)
        extended = np.full(reach + int(unit[levels].max()), np.inf)
        for level in levels:
            part = slice(int(unit[level]), int(unit[level]) + reach)
            better = best + error[level] < extended[part]
            extended[part][better] = (best + error[level])[better]
            taken[g, part][better] = level
        best = extended
    before = np.minimum.accumulate(np.concatenate([[np.inf], best[:-1]]))
    at = np.flatnonzero(best < before)  # cheaper budgets reach no such error
    chosen = np.zeros((len(at), len(errors)), dtype=np.int64)
    for g in reversed(range(len(errors))):
        chosen[:, g] = taken[g, at]
        at = at - units[g][chosen[:, g]]
    return _front(chosen, errors, costs)


def gram_search(
    vectors: Sequence[np.ndarray],
    costs: Sequence[Sequence[np.ndarray]],
    start_choices: np.ndarray,
    damping: float = 0.5,
) -> np.ndarray:
    """Each choice x [N, G] after the best single changes and exchanges of pairs, at no higher cost of any kind.

    Minimises sum_g |v_g|^2 + damping * sum_{g != h} v_g . v_h. Every single change is tried; of the pairs those among
    the 150 best moves that save and the 150 best of the rest.

    Args:
        vectors: Of each gene g error vectors [levels of g, D]; a level whose vector is not finite is never chosen.
        costs: Of each cost c and gene g the costs [levels of g].
        start_choices: Levels [N, G] to improve.
        damping: 1 is the norm of the summed vectors, 0 takes them as orthogonal; 0.5 overfits less where errors are
            large (3 bits and less).

    Returns:
        Improved levels [N, G].

    Raises:
        ValueError: `damping` is not from 0 to 1.

    Example:
        >>> import numpy as np
        >>> from search.exact.knapsack import gram_search
        >>> vectors = [np.array([[0.0], [2.0]]), np.array([[0.0], [1.0]])]
        >>> costs = [[np.array([0, -1]), np.array([0, -1])]]
        >>> gram_search(vectors, costs, np.array([[1, 0]])).tolist()
        [[0, 1]]
    """
    if not 0 <= damping <= 1:
        raise ValueError(f"damping {damping} is not from 0 to 1; use 0.5")
    choices = np.array(start_choices, dtype=np.int64)
    if not choices.size:
        return choices
    search = _Gram(vectors, costs, damping)
    return np.array([search.improve(choice) for choice in choices])


def allocation_rows(
    errors: Sequence[np.ndarray], costs: Sequence[Sequence[np.ndarray]], vectors: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Choices [G] along the exact front of each cost, and what `gram_search` makes of them, each once.

    `errors[g]`, `costs[c][g]` [levels of g] and `vectors[g]` [levels of g, D] are a table of single genes; squared
    errors are taken to add up.
    """
    rows: list[np.ndarray] = []
    for cost in costs:
        front = knapsack_front([error**2 for error in errors], cost)
        rows += [front[i][2] for i in spread_indices(len(front), MOST_OF_A_FRONT)]
    refined = [gram_search(vectors, costs, np.array(rows), damping) for damping in DAMPINGS]
    return unique_rows([*rows, *np.concatenate(refined)])


class _Gram:
    """All levels of all genes side by side: level l of gene g has the index first[g] + l."""

    def __init__(self, vectors: Sequence[np.ndarray], costs: Sequence[Sequence[np.ndarray]], damping: float) -> None:
        counts = [len(v) for v in vectors]
        self.first = np.cumsum([0, *counts[:-1]])
        self.gene = np.repeat(np.arange(len(counts)), counts)
        stacked = np.concatenate([np.asarray(v, dtype=float) for v in vectors])
        self.usable = np.isfinite(stacked).all(axis=1)
        stacked = np.where(self.usable[:, None], stacked, 0.0)
        self.inner = stacked @ stacked.T
        self.norm = np.diag(self.inner).copy()
        self.inner *= damping
        self.damping = damping
        self.cost = np.array([np.concatenate([np.asarray(c, dtype=float) for c in cost]) for cost in costs])
        self.cost = self.cost.reshape(len(costs), len(self.gene))

    def improve(self, choice: np.ndarray) -> np.ndarray:
        now = self.first + choice  # [G]
        # Rounding must neither forbid an exchange of equal costs nor let a chain of changes creep upwards.
        limit = self.cost[:, now].sum(axis=1) + 1e-9 * np.abs(self.cost).max(axis=1, initial=0.0)
        least = 1e-9 * self.norm.max(initial=0.0)
        for _ in range(MOST_MOVES):
            old = now[self.gene]
            # change of the objective if this level alone replaces the one of its gene
            gain = (1 - self.damping) * (self.norm - self.norm[old]) + 2 * (
                self.inner[:, now].sum(axis=1) - self.inner[old][:, now].sum(axis=1)
            )
            gain += self.damping * (self.norm + self.norm[old]) - 2 * self.inner[np.arange(len(old)), old]
            gain[~self.usable] = np.inf
            spare = limit - self.cost[:, now].sum(axis=1)
            extra = self.cost - self.cost[:, old]
            single = np.where((extra <= spare[:, None]).all(axis=0), gain, np.inf)
            moves = [int(single.argmin())]
            best = single[moves[0]]
            pair, joint = self._pair(gain, extra, spare, old)
            if joint < best:
                moves, best = pair, joint
            if not best < -least:
                break
            for move in moves:
                now[self.gene[move]] = move
        levels: np.ndarray = now - self.first
        return levels

    def _pair(self, gain: np.ndarray, extra: np.ndarray, spare: np.ndarray, old: np.ndarray) -> tuple[list[int], float]:
        """The best two changes at once, of different genes, and what they change."""
        real = np.flatnonzero(np.isfinite(gain) & (np.arange(len(old)) != old))
        real = real[gain[real].argsort(kind="stable")]
        saves = (extra[:, real] < 0).any(axis=0)
        some = np.concatenate([real[saves][:MOST_PAIRED], real[~saves][:MOST_PAIRED]])
        if len(some) < 2:
            return [], np.inf
        was = old[some]
        inner = self.inner
        cross = (
            inner[np.ix_(some, some)] - inner[np.ix_(some, was)] - inner[np.ix_(was, some)] + inner[np.ix_(was, was)]
        )
        joint = gain[some][:, None] + gain[some] + 2 * cross
        fits = (extra[:, some, None] + extra[:, None, some] <= spare[:, None, None]).all(axis=0)
        joint[~fits | (self.gene[some][:, None] == self.gene[some])] = np.inf
        i, j = divmod(int(joint.argmin()), len(some))
        return [int(some[i]), int(some[j])], float(joint[i, j])


def _tables(errors: Sequence[np.ndarray], costs: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    errors, costs = [np.asarray(e, dtype=float) for e in errors], [np.asarray(c, dtype=float) for c in costs]
    if [len(e) for e in errors] != [len(c) for c in costs]:
        shapes = f"{[len(e) for e in errors]} errors, {[len(c) for c in costs]} costs"
        raise ValueError(f"levels of errors and costs differ: {shapes}; give one of each per level")
    for g, (error, cost) in enumerate(zip(errors, costs, strict=True)):
        if not (error >= 0).all():
            raise ValueError(f"errors of gene {g} are {error.tolist()}; give numbers from 0 up")
        if not np.isfinite(error).any():
            raise ValueError(f"errors of gene {g} are {error.tolist()}; give at least one finite number")
        if not np.isfinite(cost).all():
            raise ValueError(f"costs of gene {g} are {cost.tolist()}; give finite numbers")
    return errors, costs


def _units(costs: list[np.ndarray], resolution: int) -> tuple[list[np.ndarray], int]:
    """Costs above the cheapest level of each gene as whole units, and the units of all most expensive levels."""
    above = [cost - cost.min() for cost in costs]
    span = sum(float(a.max()) for a in above)
    every = np.concatenate([*above, np.zeros(1)])
    unit = 0.0
    if (every == every.round()).all() and span < 2**53:
        unit = float(np.gcd.reduce(every.astype(np.int64)))
    if unit == 0 or span / unit > resolution:
        unit = span / resolution or 1.0
    units = [(a / unit).round().astype(np.int64) for a in above]
    return units, sum(int(u.max()) for u in units)


def _useful(error: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Levels, cheapest first, of which each is better than all cheaper ones; of equal levels the lowest."""
    order = np.lexsort((error, unit))
    order = order[np.isfinite(error[order])]
    before = np.minimum.accumulate(np.concatenate([[np.inf], error[order][:-1]]))
    useful: np.ndarray = order[error[order] < before]
    return useful


def _front(chosen: np.ndarray, errors: list[np.ndarray], costs: list[np.ndarray]) -> list[Point]:
    """True sums of the choices, without those that rounding let through."""
    cost = sum((c[chosen[:, g]] for g, c in enumerate(costs)), np.zeros(len(chosen)))
    error = sum((e[chosen[:, g]] for g, e in enumerate(errors)), np.zeros(len(chosen)))
    order = np.lexsort((error, cost))
    before = np.minimum.accumulate(np.concatenate([[np.inf], error[order][:-1]]))
    return [(float(cost[i]), float(error[i]), chosen[i]) for i in order[error[order] < before]]
