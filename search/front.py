"""Domination, hypervolume and intervals; pure arrays, everything is minimised."""

import numpy as np


def non_dominated(y: np.ndarray) -> np.ndarray:
    """Mask [N] of the rows of y [N, M] that no other row dominates; of equal rows the first is kept."""
    y = np.asarray(y, dtype=float)
    if y.ndim != 2:
        raise ValueError(f"scores have shape {y.shape}; give rows of objectives [N, M]")
    mask = np.ones(len(y), dtype=bool)
    for i, row in enumerate(y):
        no_worse = (y <= row).all(axis=1)
        better = no_worse & (y < row).any(axis=1)
        earlier_equal = no_worse & (y == row).all(axis=1) & (np.arange(len(y)) < i)
        mask[i] = not (better | earlier_equal).any() and not np.isnan(row).any()
    return mask


def hypervolume(y: np.ndarray, reference: np.ndarray) -> float:
    """Volume that y [N, M] dominates up to the reference point [M]; rows beyond it add nothing."""
    from pymoo.indicators.hv import HV

    y, reference = np.asarray(y, dtype=float), np.asarray(reference, dtype=float)
    if y.size and y.shape[1] != len(reference):
        raise ValueError(f"the reference point has {len(reference)} objectives, the scores {y.shape[1]}")
    inside = y[(y < reference).all(axis=1)] if y.size else y
    return float(HV(ref_point=reference)(inside)) if len(inside) else 0.0


def knee(y: np.ndarray) -> int:
    """Index of the knee of y [N, 2]: farthest below the chord between the extremes, both axes scaled to 0..1."""
    y = np.asarray(y, dtype=float)
    if y.ndim != 2 or y.shape[1] != 2 or not len(y):
        raise ValueError(f"a knee needs scores [N, 2] with N > 0, got {y.shape}")
    span = np.ptp(y, axis=0)
    z = (y - y.min(axis=0)) / np.where(span > 0, span, 1)
    return int(z.sum(axis=1).argmin())


def bootstrap_interval(
    values: np.ndarray, rng: np.random.Generator, level: float = 0.95, draws: int = 1000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of values [P], resampling prompts."""
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"an interval needs values [P] with P > 0, got {values.shape}")
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
