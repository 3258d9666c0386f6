"""Which steps of a recorded dense run a short run should take: exact shortest paths, and OLSS's reach.

Both read a teacher's states x [M+1, D] and outputs e [M, D] and return indices of the steps to run.
"""

from collections.abc import Sequence

import numpy as np


def shortest_paths(cost: np.ndarray, counts: Sequence[int]) -> list[list[int]]:
    """For every K in counts: K starts of jumps 0 = n_0 < n_1 < ... and then the end, with the least sum of costs.

    Exact; GITS (arXiv:2405.11326) is this with the error of one Euler step. O(K M²) for all K at once.

    Args:
        cost: `cost[i, j]` [M, M+1] is the error of one jump from i to j > i.
        counts: The numbers of jumps K.

    Returns:
        Of each K the starts of its jumps.

    Raises:
        ValueError: A path of so many jumps does not exist.

    Example:
        >>> import numpy as np
        >>> from search.exact.paths import shortest_paths
        >>> distance = np.abs(np.arange(4)[:, None] - np.arange(5)) ** 2.0
        >>> shortest_paths(distance, [1, 2, 4])
        [[0], [0, 2], [0, 1, 2, 3]]
    """
    size = len(cost)
    best = np.full((max(counts) + 1, size + 1), np.inf)
    back = np.zeros_like(best, dtype=int)
    best[0, 0] = 0
    jumps = np.where(np.arange(size + 1)[None] > np.arange(size)[:, None], cost, np.inf)
    for k in range(1, max(counts) + 1):
        options = best[k - 1, :size, None] + jumps
        back[k], best[k] = options.argmin(axis=0), options.min(axis=0)
    paths = []
    for count in counts:
        if not np.isfinite(best[count, size]):
            raise ValueError(f"no path of {count} steps through {size}; use counts from 1 to {size}")
        at, path = size, []
        for k in range(count, 0, -1):
            at = int(back[k, at])
            path.append(at)
        paths.append(path[::-1])
    return paths


def shortest_step_paths(states: np.ndarray, outputs: np.ndarray, counts: Sequence[int]) -> list[list[int]]:
    """GITS (arXiv:2405.11326): exact least sum of the errors of single jumps along the outputs.

    The error of a jump is the distance of the state that it should lead to from the ray along the denoiser's output.

    Args:
        states: The states of a dense run [M+1, D].
        outputs: What the denoiser gave at each of its steps [M, D].
        counts: The numbers of steps K.

    Returns:
        For each K the indices of the steps to run.

    Raises:
        ValueError: K exceeds M.
    """
    size = len(outputs)
    cost = np.full((size, size + 1), np.inf)
    for i in range(size):
        # the best jump in this direction, so that no solver's arithmetic is needed: distance to the ray
        moves = states[i + 1 :] - states[i]
        share = (moves @ outputs[i]) / max(float(outputs[i] @ outputs[i]), 1e-30)
        cost[i, i + 1 :] = np.linalg.norm(moves - share[:, None] * outputs[i], axis=1)
    return shortest_paths(cost, counts)


def reach_paths(states: np.ndarray, outputs: np.ndarray, counts: Sequence[int]) -> list[list[int]]:
    """OLSS (arXiv:2305.14677): for every K at most K steps, with the least bound on the error of any step.

    From each step the farthest state is taken whose least-squares residual in the span of the current state and the
    outputs of all chosen steps is below the bound; the bound is bisected. Greedy in each bound, so not exact.

    Args:
        states: The states of a dense run [M+1, D].
        outputs: What the denoiser gave at each of its steps [M, D].
        counts: The numbers of steps K.

    Returns:
        For each K the indices of the steps to run.
    """
    size = len(outputs)
    stacked = np.concatenate([states, outputs]).astype(float)
    gram = stacked @ stacked.T  # all residuals follow from inner products

    def residual(at: int, chosen: Sequence[int], target: int) -> float:
        columns = [at, *(size + 1 + p for p in chosen)]
        inner = gram[np.ix_(columns, columns)]
        scale = np.sqrt(np.diag(inner))
        right = gram[columns, target] / scale
        solution = np.linalg.solve(inner / np.outer(scale, scale) + 1e-10 * np.eye(len(columns)), right)
        return float(max(gram[target, target] - right @ solution, 0) / gram[target, target])

    def path(bound: float, most: int) -> list[int] | None:
        chosen, at = [0], 0
        while True:
            low, high = at + 1, size  # the next step is always within reach
            while low < high:
                middle = (low + high + 1) // 2
                low, high = (middle, high) if residual(at, chosen, middle) <= bound else (low, middle - 1)
            if low == size:
                return chosen
            if len(chosen) == most:
                return None
            at = low
            chosen.append(at)

    paths = []
    for count in counts:
        low, high, best = -30.0, 0.0, [0]  # exponents of the bound; every state is within a residual of 1
        for _ in range(25):
            middle = (low + high) / 2
            steps = path(10**middle, count)
            low, high, best = (low, middle, steps) if steps is not None else (middle, high, best)
        paths.append(best)
    return paths
