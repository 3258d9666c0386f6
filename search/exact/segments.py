"""Exact dynamic programming over step plans: the best place of K computes, for every K at once.

The tables are errors of a surrogate that adds up over steps (CacheQuant arXiv:2503.01323 and DPCache segment
in the same way; the lexicographic maximum is LeMiCa's). Each function is exact for its surrogate; engine=dp
evaluates what they find.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

Front = list[tuple[float, np.ndarray]]  # per number of computes 1..T: error, mask of computed steps [T]


def reuse_front(
    reuse: np.ndarray,
    weight: np.ndarray,
    aggregation: Literal["sum", "max", "lexicographic"] = "sum",
    lengths: tuple[int, int] | None = None,
) -> Front:
    """For K = 1..T the least aggregate of weight[t] * reuse[s, t], s the last computed step before t.

    Step 0 is always computed. O(T^3) time.

    Args:
        reuse: Error [T, T] at step t (column) of the value of step s < t (row).
        weight: Weight [T] of an error at each step.
        aggregation: `lexicographic` is the least maximum, then the least second largest error, and so on; its error is
            the maximum.
        lengths: The least and the most steps from a compute to the next or to the end; then some K have no plan and
            are left out.

    Returns:
        For each K the error and the mask [T] of computed steps.

    Raises:
        ValueError: The tables do not match, an error is negative or not finite, or `aggregation` is unknown.

    Example:
        >>> import numpy as np
        >>> from search.exact.segments import reuse_front
        >>> distance = np.abs(np.arange(4)[:, None] - np.arange(4)).astype(float)
        >>> [(error, mask.astype(int).tolist()) for error, mask in reuse_front(distance, np.ones(4))][:2]
        [(6.0, [1, 0, 0, 0]), (2.0, [1, 0, 1, 0])]
    """
    steps = len(weight)
    errors = _errors(reuse, weight, 2, "reuse")
    join: np.ufunc = np.maximum if aggregation == "max" else np.add
    # segment[s, e]: error of the steps s+1 .. e-1 when s is computed and e is the next compute (or the end)
    if aggregation == "lexicographic":
        # Digit r of a number counts how often the r-th smallest error occurs. No digit can carry, so
        # comparing numbers compares sorted errors, largest first, and adding numbers joins lists of errors.
        rank = np.unique(errors, return_inverse=True)[1].reshape(errors.shape)
        local: np.ndarray = (steps + 1) ** rank.astype(object)  # Python integers, as long as it takes
    elif aggregation in ("sum", "max"):
        local = errors
    else:
        raise ValueError(f"aggregation {aggregation!r} is unknown; use sum, max or lexicographic")
    segment = np.zeros((steps, steps + 1), dtype=local.dtype)
    for s in range(steps - 1):
        segment[s, s + 2 :] = join.accumulate(local[s, s + 1 :])
    if lengths:
        if aggregation == "lexicographic":
            raise ValueError("lengths are for sums and maxima; use aggregation sum or max")
        least, most = lengths
        apart = np.arange(steps + 1) - np.arange(steps)[:, None]
        segment[(apart < least) | (apart > most)] = np.inf
    best = np.zeros((steps + 1, steps + 1), dtype=local.dtype)  # best[k, e]: k computes before e, the next one
    back = np.zeros((steps + 1, steps + 1), dtype=int)  # the last of them
    best[1, 1:] = segment[0, 1:]
    for k in range(2, steps + 1):
        for e in range(k, steps + 1):
            options = join(best[k - 1, k - 1 : e], segment[k - 1 : e, e])
            place = int(options.argmin())
            back[k, e], best[k, e] = k - 1 + place, options[place]
    front: Front = []
    for k in range(1, steps + 1):
        if best[k, steps] == np.inf:
            continue
        mask, e = np.zeros(steps, dtype=bool), steps
        for j in range(k, 0, -1):
            e = int(back[j, e])
            mask[e] = True
        last = np.maximum.accumulate(np.where(mask, np.arange(steps), 0))
        step_errors = errors[last, np.arange(steps)][~mask]
        front.append((float(step_errors.sum() if aggregation == "sum" else step_errors.max(initial=0)), mask))
    return front


def even_plans(distance: np.ndarray) -> list[np.ndarray]:
    """CacheQuant's plans (arXiv:2503.01323), masks of computed steps [T], one for each interval I = 2..T that has one.

    T/I computes, rounded, that cost the least sum of `distance` [T, T] from each step to the one it reuses, with
    ceil(I/2) to 2I steps from one compute to the next. In the paper distances are L1, of the cached outputs.
    """
    steps = len(distance)
    masks = []
    for interval in range(2, steps + 1):
        front = reuse_front(distance, np.ones(steps), lengths=(-(-interval // 2), 2 * interval))
        masks += [mask for _, mask in front if mask.sum() == round(steps / interval)]
    return masks


def forecast_front(
    reuse: np.ndarray, forecast: np.ndarray, weight: np.ndarray, aggregation: Literal["sum", "max"] = "sum"
) -> Front:
    """For K = 1..T the least aggregate of errors where steps in between are forecast linearly.

    The dynamic program's state is the last two computed steps: O(T^4) time in O(T^2) array operations, milliseconds for
    20 steps and about a second for 100.

    Args:
        reuse: Error [T, T] of a reused value, read where only step 0 was computed: `reuse[0, t]`.
        forecast: Error [T, T, T] at step t of the line through the values of steps p < s < t.
        weight: Weight [T] of an error at each step.
        aggregation: Whether errors are added, or the largest counts.

    Returns:
        For each K the error and the mask [T] of computed steps.

    Raises:
        ValueError: The tables do not match, an error is negative or not finite, or `aggregation` is unknown.
    """
    steps = len(weight)
    if aggregation not in ("sum", "max"):
        raise ValueError(f"aggregation {aggregation!r} is unknown; use sum or max")
    join: np.ufunc = np.maximum if aggregation == "max" else np.add
    once = _errors(reuse, weight, 2, "reuse")
    twice = _errors(forecast, weight, 3, "forecast")
    # segment[p, s, e]: error of steps s+1 .. e-1 after computes p < s; p == s stands for no earlier compute
    segment = np.zeros((steps, steps, steps + 1))
    for s in range(steps - 1):
        segment[:s, s, s + 2 :] = join.accumulate(twice[:s, s, s + 1 :], axis=1)
        segment[s, s, s + 2 :] = join.accumulate(once[s, s + 1 :])
    # best[k, s, e]: k computes so far, s the last of them, e the next one (or the end)
    best = np.full((steps + 1, steps, steps + 1), np.inf)
    back = np.zeros((steps + 1, steps, steps + 1), dtype=int)  # the one before s
    best[1, 0, 1:] = segment[0, 0, 1:]
    for k in range(2, steps + 1):
        for s in range(k - 1, steps):
            options = join(best[k - 1, :s, s][:, None], segment[:s, s, s + 1 :])
            back[k, s, s + 1 :] = options.argmin(axis=0)
            best[k, s, s + 1 :] = options.min(axis=0)
    front: Front = []
    for k in range(1, steps + 1):
        s, e = int(best[k, :, steps].argmin()), steps
        error, mask = float(best[k, s, steps]), np.zeros(steps, dtype=bool)
        for j in range(k, 0, -1):
            mask[s] = True
            s, e = int(back[j, s, e]), s
        front.append((error, mask))
    return front


def merge_fronts(
    fronts: Mapping[str, Front], costs: Mapping[str, float]
) -> list[tuple[float, float, dict[str, np.ndarray]]]:
    """Fronts of several nodes as one.

    Costs and errors add (so not for fronts of maxima). On the lower convex hull of each front the best next step is
    the one that saves most error per cost, whatever the other nodes do: no combination of masks dominates a point that
    is returned. O(N log N) in the number of points.

    Args:
        fronts: By node what `reuse_front` returns.
        costs: By node the cost of computing it once, above 0.

    Returns:
        (total cost, total error, mask [T] per node) of each point, cheapest first.

    Raises:
        ValueError: A node has no cost above 0.

    Example:
        >>> import numpy as np
        >>> from search.exact.segments import merge_fronts
        >>> front = [(2.0, np.array([True, False])), (0.0, np.array([True, True]))]
        >>> [(cost, error) for cost, error, _ in merge_fronts({"attn": front, "ff": front}, {"attn": 1, "ff": 3})]
        [(4.0, 4.0), (5.0, 2.0), (8.0, 0.0)]
    """
    moves: list[tuple[float, str, int]] = []  # slope, node, index into its front
    at: dict[str, int] = {}
    for name, front in fronts.items():
        if not costs.get(name, 0) > 0:
            raise ValueError(f"cost of {name!r} is {costs.get(name)}; give a number above 0 for every node")
        points = [(costs[name] * float(mask.sum()), error) for error, mask in front]
        hull = _hull(points)
        at[name] = hull[0]
        steepest = -np.inf  # slopes rise along a hull; rounding must not bring a node's moves out of order
        for a, b in zip(hull, hull[1:], strict=False):
            steepest = max(steepest, (points[b][1] - points[a][1]) / (points[b][0] - points[a][0]))
            moves.append((steepest, name, b))

    def total() -> tuple[float, float, dict[str, np.ndarray]]:
        chosen = {name: fronts[name][i] for name, i in at.items()}
        cost = sum(costs[name] * float(mask.sum()) for name, (_, mask) in chosen.items())
        return (
            cost,
            sum(error for error, _ in chosen.values()),
            {name: mask for name, (_, mask) in chosen.items()},
        )

    merged = [total()]
    for _, name, index in sorted(moves, key=lambda move: (move[0], move[2])):
        at[name] = index
        merged.append(total())
    return merged


def _errors(table: np.ndarray, weight: np.ndarray, axes: int, name: str) -> np.ndarray:
    """weight[t] * table[..., s, t] where a value can be used (every earlier index < the next), else 0."""
    table, weight = np.asarray(table, dtype=float), np.asarray(weight, dtype=float)
    wanted = (len(weight),) * axes
    if table.shape != wanted:
        raise ValueError(f"{name} has shape {table.shape}; give {wanted}, as there are {len(weight)} weights")
    index: Any = np.indices(table.shape)
    later = np.all(index[1:] > index[:-1], axis=0)
    errors = np.where(later, weight * table, 0.0)
    if not (np.isfinite(errors) & (errors >= 0)).all():
        raise ValueError(f"{name} times weight has a number that is negative or not finite; measure the tables again")
    return errors


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
