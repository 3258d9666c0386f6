"""Exact dynamic programming over step plans: the best place of K computes, for every K at once.

The tables are errors of a surrogate that adds up over steps (CacheQuant arXiv:2503.01323 and DPCache segment
in the same way). Each function is exact for its surrogate; the engine evaluates what they find.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from search.engines.base import Engine, Start

Front = list[tuple[float, np.ndarray]]  # per number of computes: error, mask of computed steps [T]


class DpEngine(Engine):
    """Evaluates the exact front of the surrogate, which its seeds hold, and nothing more."""

    def __init__(self, start: Start) -> None:
        if not len(start.seeds):
            raise ValueError("this space has no genes for the DP front; use engine=nsga2")
        self.start = start
        self.waiting = list(dict.fromkeys(tuple(int(v) for v in row) for row in start.seeds))

    def ask(self, n: int) -> np.ndarray:
        rows, self.waiting = self.waiting[:n], self.waiting[n:]
        return np.array(rows, dtype=np.int64).reshape(len(rows), len(self.start.genes))


def reuse_front(
    reuse: np.ndarray, weight: np.ndarray, aggregation: Literal["sum", "max"] = "sum"
) -> Front:
    """For K = 1..T the least sum (or maximum) of weight[t] * reuse[s, t], s the last computed step before t.

    `reuse` [T, T], `weight` [T]; step 0 is always computed. O(T^3) time.
    """
    steps = len(weight)
    join = _joins(aggregation)
    # segment[s, e]: error of the steps s+1 .. e-1 when s is computed and e is the next compute (or the end)
    segment = np.zeros((steps, steps + 1))
    for s in range(steps):
        for e in range(s + 2, steps + 1):
            segment[s, e] = join(segment[s, e - 1], weight[e - 1] * reuse[s, e - 1])
    best = np.full((steps + 1, steps + 1), np.inf)  # best[k, e]: k computes lie before e, e is the next one
    back = np.zeros((steps + 1, steps + 1), dtype=int)
    best[1, 1:] = segment[0, 1:]
    for k in range(2, steps + 1):
        for e in range(k, steps + 1):
            options = [join(best[k - 1, s], segment[s, e]) for s in range(k - 1, e)]
            back[k, e] = k - 1 + int(np.argmin(options))
            best[k, e] = min(options)
    front: Front = []
    for k in range(1, steps + 1):
        mask, e = np.zeros(steps, dtype=bool), steps
        for j in range(k, 1, -1):
            e = back[j, e]
            mask[e] = True
        mask[0] = True
        front.append((float(best[k, steps]), mask))
    return front


def forecast_front(reuse: np.ndarray, forecast: np.ndarray, weight: np.ndarray) -> Front:
    """The same with a linear forecast: forecast[p, s, t] after the computes p < s, reuse[0, t] after only one.

    The state is the last two computes: O(T^4) time, T = 20 takes milliseconds to a second.
    """
    steps = len(weight)
    # segment[p, s, e]: error of steps s+1 .. e-1 after computes p < s; p == s stands for no earlier compute
    segment = np.zeros((steps, steps, steps + 1))
    for s in range(steps):
        for p in range(s + 1):
            errors = weight * (reuse[s] if p == s else forecast[p, s])
            total = np.cumsum(errors)
            for e in range(s + 2, steps + 1):
                segment[p, s, e] = total[e - 1] - total[s]
    # best[k][s, e]: k computes so far, s the last of them, e the next one (or the end)
    best = np.full((steps + 1, steps, steps + 1), np.inf)
    back = np.zeros((steps + 1, steps, steps + 1), dtype=int)
    best[1, 0, 1:] = segment[0, 0, 1:]
    for k in range(2, steps + 1):
        for s in range(k - 1, steps):
            options = best[k - 1, :s, s][:, None] + segment[:s, s, s + 1 :]
            back[k, s, s + 1 :] = options.argmin(axis=0)
            best[k, s, s + 1 :] = options.min(axis=0)
    front: Front = []
    for k in range(1, steps + 1):
        s, e = int(best[k, :, steps].argmin()), steps
        error, mask = float(best[k, s, steps]), np.zeros(steps, dtype=bool)
        for j in range(k, 0, -1):
            mask[s] = True
            s, e = (int(back[j, s, e]), s) if j > 1 else (s, e)
        front.append((error, mask))
    return front


def merge(
    fronts: Mapping[str, Front], costs: Mapping[str, float]
) -> list[tuple[float, float, dict[str, np.ndarray]]]:
    """Fronts of several nodes as one: (total cost, total error, mask per node), cheapest first.

    Errors and costs add, so on the lower convex hulls the best next compute is the one that saves most error
    per cost: exact at every point that is returned.
    """
    hulls = {name: _hull([(costs[name] * mask.sum(), error) for error, mask in f]) for name, f in fronts.items()}
    at = {name: hull[0] for name, hull in hulls.items()}
    moves = []
    for name, hull in hulls.items():
        for a, b in zip(hull, hull[1:], strict=False):
            (cost_a, error_a), (cost_b, error_b) = (_point(fronts[name], costs[name], i) for i in (a, b))
            moves.append(((error_b - error_a) / (cost_b - cost_a), name, b))

    def total() -> tuple[float, float, dict[str, np.ndarray]]:
        points = [_point(fronts[name], costs[name], i) for name, i in at.items()]
        masks = {name: fronts[name][i][1] for name, i in at.items()}
        return sum(c for c, _ in points), sum(e for _, e in points), masks

    found = [total()]
    for _, name, index in sorted(moves, key=lambda move: (move[0], move[2])):
        at[name] = index
        found.append(total())
    return found


def _joins(aggregation: str):
    if aggregation == "sum":
        return lambda a, b: a + b
    if aggregation == "max":
        return max
    raise ValueError(f"aggregation {aggregation!r} is unknown; use sum or max")


def _point(front: Front, cost: float, index: int) -> tuple[float, float]:
    error, mask = front[index]
    return cost * float(mask.sum()), error


def _hull(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the lower convex hull of points of rising cost, as far as the error falls."""
    hull: list[int] = []
    for i, (x, y) in enumerate(points):
        if hull and y >= points[hull[-1]][1]:
            continue
        while len(hull) > 1:
            (x0, y0), (x1, y1) = points[hull[-2]], points[hull[-1]]
            if (y1 - y0) * (x - x0) < (y - y0) * (x1 - x0):
                break
            hull.pop()
        hull.append(i)
    return hull
