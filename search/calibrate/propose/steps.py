"""Paths of timesteps through a recorded dense run."""

from collections.abc import Sequence

import numpy as np

from search.exact.paths import shortest_paths


def shortest_step_paths(states: np.ndarray, outputs: np.ndarray, counts: Sequence[int]) -> list[list[int]]:
    """GITS (arXiv:2405.11326): exact least sum of the errors of single jumps along the outputs."""
    size = len(outputs)
    cost = np.full((size, size + 1), np.inf)
    for i in range(size):
        # the best jump in this direction, so that no solver's arithmetic is needed: distance to the ray
        moves = states[i + 1 :] - states[i]
        share = (moves @ outputs[i]) / max(float(outputs[i] @ outputs[i]), 1e-30)
        cost[i, i + 1 :] = np.linalg.norm(moves - share[:, None] * outputs[i], axis=1)
    return shortest_paths(cost, counts)
