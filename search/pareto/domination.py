"""Domination, hypervolume, knee and thinning of Pareto fronts."""

from collections.abc import Sequence

import numpy as np

from search.pareto.intervals import _rows


def non_dominated(y: np.ndarray) -> np.ndarray:
    """Mask [N] of the rows of y [N, M] that no other row dominates.

    A row dominates another one if it is nowhere higher and somewhere lower: all scores are minimised. Of equal rows the
    first is kept; rows with a NaN are never kept and dominate nothing.

    Raises:
        ValueError: y has another number of dimensions.

    Example:
        >>> import numpy as np
        >>> from search.pareto.domination import non_dominated
        >>> non_dominated(np.array([[1.0, 4.0], [2.0, 2.0], [3.0, 3.0], [4.0, 1.0]])).tolist()
        [True, True, False, True]
    """
    y = _rows(y)
    mask = np.zeros(len(y), dtype=bool)
    # In lexicographic order nothing dominates what stands before it, and lexsort is stable: the first of
    # equal rows comes first. So a row has to be compared with the front found so far, and with nothing else.
    front = np.empty((0, y.shape[1]))
    for i in np.lexsort(y.T[::-1]) if y.shape[1] else []:
        if not np.isnan(y[i]).any() and not (front <= y[i]).all(axis=1).any():
            mask[i] = True
            front = np.vstack([front, y[i]])
    return mask


def hypervolume(y: np.ndarray, reference: np.ndarray) -> float:
    """Volume that y [N, M] dominates up to the reference point [M]; rows beyond it or with NaN add nothing.

    Raises:
        ValueError: y and the reference point have different numbers of objectives.

    Example:
        >>> import numpy as np
        >>> from search.pareto.domination import hypervolume
        >>> hypervolume(np.array([[1.0, 3.0], [2.0, 2.0]]), np.array([4.0, 4.0]))
        5.0
    """
    from pymoo.indicators.hv import HV

    reference = np.asarray(reference, dtype=float)
    y = np.asarray(y, dtype=float)
    y = _rows(y) if y.size else np.empty((0, len(reference)))
    if y.shape[1] != len(reference):
        raise ValueError(f"the reference point has {len(reference)} objectives, the scores {y.shape[1]}")
    inside = y[(y < reference).all(axis=1)]
    return float(HV(ref_point=reference)(inside)) if len(inside) else 0.0


def knee(y: np.ndarray) -> int:
    """Index of the knee of y [N, 2]: the point of the front that lies farthest below the chord.

    The chord joins the two ends of the front after both axes are scaled to 0..1; dominated rows do not count.
    Of equally far points, on a straight front for example, the one with the lowest first objective is taken.

    Raises:
        ValueError: There are not two objectives, or every row has a NaN.

    Example:
        >>> import numpy as np
        >>> from search.pareto.domination import knee
        >>> knee(np.array([[0.0, 10.0], [1.0, 2.0], [10.0, 0.0]]))
        1
    """
    y = _rows(y)
    front = np.flatnonzero(non_dominated(y))
    if y.shape[1] != 2 or not len(front):
        raise ValueError(f"a knee needs scores [N, 2] with a row that is not NaN, got shape {y.shape}")
    front = front[y[front, 0].argsort()]
    span = np.ptp(y[front], axis=0)
    z = (y[front] - y[front].min(axis=0)) / np.where(span > 0, span, 1)
    # The scaled ends are (0, 1) and (1, 0): below the chord by (1 - z0 - z1) / sqrt(2). Rounded, so that on a
    # straight front the last bit does not choose.
    return int(front[z.sum(axis=1).round(12).argmin()])


def thin(scores: Sequence[Sequence[float]], worst: Sequence[float], most: int) -> list[int]:
    """Indices of at most `most` non-dominated rows [N, M] that are nowhere beyond `worst` [M].

    The extremes, then always the one farthest from those chosen; distances are between ranks, so that the
    choice is even along the front whatever the scales of the objectives.

    Args:
        scores: Rows [N][M], to be minimised.
        worst: The highest value that is useful, of each objective.
        most: How many rows are chosen; the extremes always are.

    Returns:
        Rising indices of the chosen rows.
    """
    y = np.array(scores, dtype=float)
    front = np.flatnonzero(non_dominated(y) & (y <= np.asarray(worst)).all(axis=1))
    if not len(front):
        return []
    ranks = y[front].argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    chosen = list(dict.fromkeys(ranks.argmin(axis=0).tolist()))
    while len(chosen) < min(most, len(front)):
        distance = np.linalg.norm(ranks[:, None] - ranks[chosen][None], axis=2).min(axis=1)
        chosen.append(int(distance.argmax()))
    return sorted(front[chosen].tolist())
