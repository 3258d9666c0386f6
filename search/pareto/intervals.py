"""Bootstrap intervals of means and of paired differences."""

from functools import cache

import numpy as np


def bootstrap_interval(
    values: np.ndarray, rng: np.random.Generator, level: float = 0.95, draws: int = 1000
) -> tuple[float, float]:
    """Bootstrap interval (low, high) of the mean of values [P], resampling prompts.

    Expanded percentiles (Hesterberg 2015, arXiv:1411.5279): so far out that few values of a normal distribution are
    covered as by Student's t; ordinary percentiles are too narrow for few prompts.

    Args:
        values: One number per prompt [P].
        rng: Draws the resamples; the same state gives the same interval.
        level: The probability that the interval covers the true mean.
        draws: The number of resamples.

    Raises:
        ValueError: There are no values, or the level is not between 0 and 1.

    Example:
        >>> import numpy as np
        >>> from search.pareto.intervals import bootstrap_interval
        >>> low, high = bootstrap_interval(np.arange(10.0), np.random.default_rng(0))
        >>> low < 4.5 < high
        True
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"an interval needs values [P] with P > 0, got {values.shape}")
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1; use 0.95")
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(axis=1)
    low, high = np.quantile(means, _tails(level, len(values)))
    return float(low), float(high)


def paired_difference_interval(
    a: np.ndarray, b: np.ndarray, rng: np.random.Generator, level: float = 0.95, draws: int = 1000
) -> tuple[float, float]:
    """Bootstrap interval of mean(a - b); a [P] and b [P] are scores of the same prompts in the same order.

    Narrower than the difference of two intervals: what makes a prompt hard is in both scores and cancels.

    Raises:
        ValueError: The two have different numbers of values.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"pairs need equal shapes, got {a.shape} and {b.shape}; score both on the same prompts")
    return bootstrap_interval(a - b, rng, level, draws)


def paired_ratio_interval(
    a: np.ndarray, b: np.ndarray, rng: np.random.Generator, level: float = 0.95, draws: int = 1000
) -> tuple[float, float]:
    """Bootstrap interval of mean(a) / mean(b); a [P] and b [P] > 0 are scores of the same prompts in the same order.

    Raises:
        ValueError: The two have different numbers of values.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"pairs need equal shapes [P], got {a.shape} and {b.shape}; score both on the same prompts")
    drawn = rng.integers(len(a), size=(draws, len(a)))
    low, high = np.quantile(a[drawn].mean(axis=1) / b[drawn].mean(axis=1), _tails(level, len(a)))
    return float(low), float(high)


def difference_interval(
    a: np.ndarray, b: np.ndarray, rng: np.random.Generator, level: float = 0.95, draws: int = 1000
) -> tuple[float, float]:
    """Bootstrap interval of mean(a) - mean(b); a [P] and b [Q] are of different prompts, each resampled by itself."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.ndim != 1 or b.ndim != 1 or not len(a) or not len(b):
        raise ValueError(f"an interval needs values [P] and [Q] with P, Q > 0, got {a.shape} and {b.shape}")
    means = [x[rng.integers(len(x), size=(draws, len(x)))].mean(axis=1) for x in (a, b)]
    low, high = np.quantile(means[0] - means[1], _tails(level, min(len(a), len(b))))
    return float(low), float(high)


def surely_dominated(
    values: np.ndarray, costs: np.ndarray, rng: np.random.Generator, level: float = 0.95, draws: int = 1000
) -> list[int | None]:
    """For each of N rows the row that surely dominates it, or None.

    Args:
        values: Qualities per prompt [N, Q, P], to be minimised.
        costs: Exact costs [N, C], to be minimised.
        rng: Draws the resamples of prompts.
        level: The share of the draws that counts as sure.
        draws: The number of resamples.

    Returns:
        For each row the index of the row that dominates it, or None.

    Raises:
        ValueError: `values` and `costs` have different numbers of rows, or other dimensions.

    Surely means: in at least `level` of the draws of P prompts, the same for all rows, the other row's means and costs
    are nowhere higher and somewhere lower; of few prompts it is more than `level`, as for intervals.
    Of several such rows it is the surest, then the first. Each pair is judged by itself: among many some are judged
    wrongly.
    """
    values, costs = np.asarray(values, dtype=float), np.asarray(costs, dtype=float)
    if values.ndim != 3 or costs.ndim != 2 or len(values) != len(costs):
        raise ValueError(f"give values [N, Q, P] and costs [N, C] of the same N, got {values.shape} and {costs.shape}")
    n, _, prompts = values.shape
    enough = 1 - _tails(2 * level - 1, prompts)[0]
    drawn = rng.integers(prompts, size=(draws, prompts))
    means = np.stack([values[:, :, row].mean(axis=2) for row in drawn])  # [draws, N, Q]
    dominating: list[int | None] = []
    for i in range(n):
        cheaper, cheapest = (costs <= costs[i]).all(axis=1), (costs < costs[i]).any(axis=1)
        nowhere, somewhere = (means <= means[:, i, None]).all(axis=2), (means < means[:, i, None]).any(axis=2)
        share = (nowhere & cheaper & (somewhere | cheapest)).mean(axis=0)
        dominating.append(int(share.argmax()) if share.max() >= enough else None)
    return dominating


@cache
def _tails(level: float, count: int) -> tuple[float, float]:
    """The two quantiles of resampled means that are the ends of an interval for a mean of so many values."""
    from scipy.stats import norm, t

    if count < 2:
        return 0.0, 1.0
    tail = float(norm.cdf((count / (count - 1)) ** 0.5 * t.ppf((1 - level) / 2, count - 1)))
    return tail, 1 - tail


def _rows(y: np.ndarray) -> np.ndarray:
    y = np.asarray(y, dtype=float)
    if y.ndim != 2:
        raise ValueError(f"scores have shape {y.shape}; give rows of objectives [N, M]")
    return y
